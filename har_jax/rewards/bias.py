"""The bias-reduction term: gendered words that no reference supports (see `metrics.gender`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from har_jax.metrics import gender
from har_jax.rewards.per_caption import PerCaption, References


class BiasPenalty(PerCaption):
    """b in {0, 1/2, 1}: 1 for a gendered word that contradicts the references, 1/2 for one that
    they do not support. A penalty, so its weight is negative: `cider_d - 1.0*bias`.

    Args:
      references: raw captions, see `per_caption.References`.
      lists: "lic" (as published) or "balanced" (every word has a counterpart).

    Raises:
      UserError: unknown lists, or an image without references.
    """

    def __init__(self, references: Mapping[int, Sequence[str]], *, lists: str = "lic"):
        gender.word_lists(lists)
        self._references = References(references)
        self._lists = lists
        # Two numbers per image: all of them may stay.
        self._support = functools.lru_cache(None)(self._read_support)
        self.signature = f"bias[{lists}]+ptb"

    def _read_support(self, image_id: int) -> tuple[float, float]:
        return gender.support(self._references.words(image_id), self._lists)

    def figures(self, image_id: int, words: Sequence[str]) -> float:
        supported = self._support(image_id)
        return gender.unsupported(gender.mentions(words, self._lists), supported)
