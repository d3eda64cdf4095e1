"""Corpus BLEU-1..4 with the closest reference length, number for number as pycocoevalcap prints it.

It differs from other BLEUs in its smoothing: counts get 1e-15 and 1e-9 added so that nothing
divides by zero (Papineni et al. 2002; pycocoevalcap/bleu/bleu_scorer.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from har_jax.errors import UserError

Words = Sequence[str]

_TINY = 1e-15
_SMALL = 1e-9


def corpus_bleu(
    references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words], *, n: int = 4
) -> tuple[list[float], dict[int, list[float]]]:
    """BLEU-1..n over all predictions, and of each image alone.

    Returns:
      ([BLEU-1, .., BLEU-n], {image id: [BLEU-1, .., BLEU-n]}), values in [0, 1].

    Raises:
      UserError: an image without references, or nothing to score.
    """
    if not predictions:
        raise UserError("BLEU needs at least one prediction, got none")
    total_correct, total_guess = [0] * n, [0] * n
    total_length = total_closest = 0
    per_image = {}
    for image_id, words in predictions.items():
        captions = references.get(image_id)
        if not captions:
            raise UserError(f"no references for image {image_id}; BLEU needs at least one")
        correct = _clipped_matches(words, captions, n)
        guess = [max(0, len(words) - k) for k in range(n)]
        closest = min((abs(len(r) - len(words)), len(r)) for r in captions)[1]
        per_image[image_id] = _bleu(correct, guess, len(words), closest)
        total_correct = [a + b for a, b in zip(total_correct, correct, strict=True)]
        total_guess = [a + b for a, b in zip(total_guess, guess, strict=True)]
        total_length += len(words)
        total_closest += closest
    return _bleu(total_correct, total_guess, total_length, total_closest), per_image


def _clipped_matches(words: Words, captions: Sequence[Words], n: int) -> list[int]:
    """For each n-gram size, how many n-grams of `words` some reference accounts for."""
    correct = []
    for k in range(1, n + 1):
        counts = Counter(_ngrams(words, k))
        most: dict[tuple[str, ...], int] = {}
        for reference in captions:
            for gram, count in Counter(g for g in _ngrams(reference, k) if g in counts).items():
                if count > most.get(gram, 0):
                    most[gram] = count
        correct.append(sum(min(counts[gram], count) for gram, count in most.items()))
    return correct


def _ngrams(words: Words, k: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(k)), strict=False))


def _bleu(correct: Sequence[int], guess: Sequence[int], length: int, closest: int) -> list[float]:
    """Geometric means of the precisions times the brevity penalty."""
    ratio = (length + _TINY) / (closest + _SMALL)
    # An empty caption has ratio ~0: exp underflows to 0 as it should.
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for k, (hits, tries) in enumerate(zip(correct, guess, strict=True), 1):
        product *= (hits + _TINY) / (tries + _SMALL)
        values.append(product ** (1 / k) * brevity)
    return values
