"""Bootstrap over images: how far a score would move if other images had been drawn.

Images are drawn with replacement, `RESAMPLES` times, and every metric is computed anew from what
is known of each image (Efron & Tibshirani 1993; paired: Koehn, "Statistical significance tests for
machine translation evaluation", 2004). For means (CIDEr, ROUGE-L, SPICE, CLIPScore, CHAIRs) that is
the image's value; corpus BLEU is computed from the drawn images' summed n-gram counts. CIDEr keeps
its document frequencies: they belong to the evaluated set, and a resample has too few distinct
images to have them of its own. METEOR and CHAIRi have no interval: their corpus values are not made
of the images' values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from har_jax.errors import UserError
from har_jax.metrics.bleu_counts import bleu_of_counts
from har_jax.metrics.embedding_scores import KINDS

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

RESAMPLES = 1000
LEVEL = 0.95
METHOD = "percentile bootstrap over images; CIDEr with the corpus document frequencies held fixed"
MEANS = ("CIDEr", "ROUGE_L", "SPICE")
MEANS += tuple(key for kind in KINDS.values() for key in (kind.key, kind.ref_key))
MEANS += ("CHAIRs",)
"""Metrics whose corpus value is the mean of the images' values."""
BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
_ORDER = ("CIDEr", *BLEU, *MEANS[1:])
_AT_ONCE = 1 << 17  # image weights at a time: they and their counts stay in a core's cache


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What is known of each of I images.

    Attributes:
      metrics: the names of the metrics.
      columns: [I, columns], the values of the means, then BLEU's counts (of 4-grams) if it is in.
    """

    metrics: tuple[str, ...]
    columns: Float64[np.ndarray, "I columns"]

    @classmethod
    def of(
        cls,
        per_image: Sequence[Mapping[str, Any]],
        counts: Int64[np.ndarray, "I columns"] | None = None,
    ) -> Statistics:
        """From rows of `per_image.json` and of `metrics.bleu_counts.bleu_counts_of`, in one order.
        A metric that some image lacks is left out."""
        present = [name for name in MEANS if all(row.get(name) is not None for row in per_image)]
        parts = [np.array([row[name] for row in per_image], np.float64) for name in present]
        if counts is not None:
            parts += list(counts.T.astype(np.float64))
        names = {*present, *(BLEU if counts is not None else ())}
        columns = np.column_stack(parts) if parts else np.empty((len(per_image), 0))
        return cls(tuple(name for name in _ORDER if name in names), columns)

    def values(self, sums: Float64[np.ndarray, "S columns"]) -> dict[str, np.ndarray]:
        """{metric: [S]} from S weighted sums of the rows, each over as many images as there are."""
        means = [name for name in MEANS if name in self.metrics]
        found = {name: sums[:, i] / len(self.columns) for i, name in enumerate(means)}
        if BLEU[0] in self.metrics:
            found |= dict(zip(BLEU, bleu_of_counts(sums[:, len(means) :]).T, strict=True))
        return {name: found[name] for name in self.metrics}

    def corpus(self) -> dict[str, float]:
        """{metric: value} of the images as they are."""
        values = self.values(self.columns.sum(0, keepdims=True))
        return {name: float(value[0]) for name, value in values.items()}


def resample(
    systems: Sequence[Statistics], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[dict[str, np.ndarray]]:
    """{metric: [resamples]} of each system; the same images are drawn for all of them.

    Raises:
      UserError: fewer than 2 images or resamples, or systems over different numbers of images.
    """
    n = len(systems[0].columns)
    if any(len(system.columns) != n for system in systems):
        got = [len(system.columns) for system in systems]
        raise UserError(f"systems over {got} images cannot be paired; score the same images")
    if n < 2 or resamples < 2:
        raise UserError(
            f"a bootstrap of {n} images with {resamples} resamples says nothing; "
            "both must be at least 2"
        )
    rng = np.random.default_rng(seed)
    columns = np.concatenate([system.columns for system in systems], axis=1)
    sums = np.empty((resamples, columns.shape[1]))
    step = max(1, _AT_ONCE // n)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        # How often each image was drawn: one matrix product then sums every column.
        drawn = rng.integers(n, size=(rows, n), dtype=np.int32)
        drawn += np.arange(rows, dtype=np.int32)[:, None] * np.int32(n)
        weights = np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n)
        sums[begin : begin + rows] = weights.astype(np.float64) @ columns
    ends = np.cumsum([system.columns.shape[1] for system in systems])
    parts = np.split(sums, ends[:-1], axis=1)
    return [system.values(part) for system, part in zip(systems, parts, strict=True)]


def interval(values: Float64[np.ndarray, " S"], level: float = LEVEL) -> list[float]:
    """[low, high], between which the middle `level` of the resampled values lies."""
    tail = (1 - level) / 2
    at = np.array([tail, 1 - tail]) * (len(values) - 1)
    # What np.quantile does; the first call of that takes longer than the bootstrap's own sums.
    return np.interp(at, np.arange(len(values)), np.sort(values)).tolist()


def confidence(
    statistics: Statistics, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """`scores.json["confidence"]`; None for a single image, of which there is no spread."""
    if len(statistics.columns) < 2:
        return None
    (values,) = resample([statistics], seed=seed, resamples=resamples)
    return {
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "method": METHOD,
        "intervals": {name: interval(drawn) for name, drawn in values.items()},
    }


def paired(
    system: Statistics, other: Statistics, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """The difference `system - other` of every metric that both have.

    p is two-sided and belongs to the interval: twice the share of resamples on the far side of 0,
    with one added to both counts, so that it is never 0 (Davison & Hinkley 1997, §4.2).

    Returns:
      {metric: {"value", "other", "difference", "interval": [low, high], "p"}}.
    """
    ours, theirs = resample([system, other], seed=seed, resamples=resamples)
    here, there = system.corpus(), other.corpus()
    found = {}
    for name in ours:
        if name not in theirs:
            continue
        difference = ours[name] - theirs[name]
        # Sums in another order differ in the last bits; such a difference is none.
        difference[np.abs(difference) < 1e-12] = 0.0
        far = min(int(np.sum(difference <= 0)), int(np.sum(difference >= 0)))
        found[name] = {
            "value": here[name],
            "other": there[name],
            "difference": here[name] - there[name],
            "interval": interval(difference),
            "p": min(1.0, 2 * (far + 1) / (resamples + 1)),
        }
    return found
