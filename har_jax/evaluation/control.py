"""Controls: what a captioner scores when something that it should depend on is taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.errors import UserError
from har_jax.metrics.corpus import score_captions


def derangement(n: int, seed: int) -> np.ndarray:
    """A permutation of `range(n)` that leaves nothing in its place, uniform among the cyclic ones.

    Raises:
      UserError: fewer than two things cannot be deranged.
    """
    if n < 2:
        raise UserError(f"--control=shuffle needs at least 2 images, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, -1)
    return found


def shuffled(texts: Mapping[int, str], seed: int) -> dict[int, str]:
    """Every image gets another one's caption: the control that shows whether vision matters."""
    ids = list(texts)
    other = derangement(len(ids), seed)
    return {image_id: texts[ids[j]] for image_id, j in zip(ids, other, strict=True)}


def shuffle_control(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    real: float | None,
    seed: int,
) -> dict[str, Any]:
    """CIDEr when every image is captioned as another one. A blind captioner has a ratio near 1.

    Args:
      real: the CIDEr of the unshuffled captions.
    """
    control = score_captions(references, shuffled(predictions, seed), metrics=("CIDEr",))
    value = control.corpus["CIDEr"]
    ratio = value / real if value is not None and real else None
    return {"kind": "shuffle", "seed": seed, "CIDEr": real, "CIDEr_shuffled": value, "ratio": ratio}
