"""Sentence BLEU as a reward: the value that pycocoevalcap gives an image by itself."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from har_jax.errors import UserError
from har_jax.metrics import ngrams
from har_jax.metrics.bleu_counts import bleu_of_counts
from har_jax.rewards.per_caption import PerCaption, References
from har_jax.text.words import PTB, Words

_COOKED = 4096  # images whose references stay counted, about 15 kB each


class BleuReward(PerCaption):
    """BLEU-n in [0, 1] of one caption against its image's references.

    The end of a caption does not count as a word. Without a matching n-gram of some size the value
    is nearly 0 (pycocoevalcap adds 1e-15 to the matches), which is the case of many samples.

    Args:
      references: raw captions, see `per_caption.References`.
      n: longest n-gram.

    Raises:
      UserError: `n` outside 1..4, or an image without references.
    """

    def __init__(self, references: Mapping[int, Sequence[str]], *, n: int = 4, words: Words = PTB):
        super().__init__(words)
        if not 1 <= n <= 4:
            raise UserError(f"BLEU-{n} is no reward; n must be 1, 2, 3 or 4")
        self._references = References(references, words)
        self._n = n
        self._cook = functools.lru_cache(_COOKED)(self._count_references)
        self.signature = f"BLEU[n{n},sentence,closest]+{words.mark}"

    def _count_references(self, image_id: int) -> tuple[dict[tuple[str, ...], int], list[int]]:
        """(how often each n-gram occurs in the reference that has it most, their lengths)."""
        captions = self._references.words(image_id)
        most: Counter[tuple[str, ...]] = Counter()
        for words in captions:
            most |= _count(words, self._n)
        return most, [len(words) for words in captions]

    def figures(self, image_id: int, words: Sequence[str]) -> list[int]:
        """A row as `metrics.bleu_counts.bleu_counts_of` has it."""
        most, lengths = self._cook(image_id)
        n = self._n
        correct = [0] * n
        for gram, count in _count(words, n).items():
            correct[len(gram) - 1] += min(count, most.get(gram, 0))
        own = len(words)
        closest = min((abs(length - own), length) for length in lengths)[1]
        return [*correct, *(max(0, own - k) for k in range(n)), own, closest]

    def values(self, figures: np.ndarray) -> np.ndarray:
        return bleu_of_counts(figures)[:, -1]


def _count(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each 1..n-gram stands in a caption."""
    return Counter(gram for k in range(1, n + 1) for gram in ngrams.of(words, k))
