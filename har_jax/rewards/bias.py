"""The bias-reduction term: gendered words that no reference supports (see `metrics.gender`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from har_jax.metrics import gender
from har_jax.rewards.per_caption import check_references, references_of, words_of


class BiasPenalty:
    """b in {0, 1/2, 1}: 1 for a gendered word that contradicts the references, 1/2 for one that
    they do not support. A penalty, so its weight is negative: `cider_d - 1.0*bias`.

    Args:
      references: raw captions of every image that will be scored; read when first needed.
      lists: "lic" (as published) or "balanced" (every word has a counterpart).

    Raises:
      UserError: unknown lists, or an image without references.
    """

    def __init__(self, references: Mapping[int, Sequence[str]], *, lists: str = "lic"):
        gender.word_lists(lists)
        check_references(references)
        self._references = references
        self._lists = lists
        # Two numbers per image: all of them may stay.
        self._support = functools.lru_cache(None)(self._read_support)
        self.signature = f"bias[{lists}]+ptb"

    def _read_support(self, image_id: int) -> tuple[float, float]:
        texts = references_of(self._references, image_id)
        return gender.support([words_of(text) for text in texts], self._lists)

    def __call__(
        self,
        image_ids: Int64[np.ndarray, " B"],
        captions: Sequence[Sequence[str]],
        ended: Bool[np.ndarray, "B R"],
    ) -> Float32[np.ndarray, "B R"]:
        """See `contract.Reward`.

        Raises:
          UserError: an image without references.
        """
        values = [
            gender.unsupported(
                gender.mentions(words_of(text), self._lists), self._support(int(image_id))
            )
            for image_id, group in zip(image_ids, captions, strict=True)
            for text in group
        ]
        return np.array(values, np.float32).reshape(ended.shape)
