"""BLEU-1..4 with the closest reference length, number for number as pycocoevalcap prints it.

    counts = bleu_counts_of(count_ngrams(references, predictions, metric="BLEU"))  # [I, 2n+2]
    bleu_of_counts(counts.sum(0))                      # [n], corpus BLEU-1..n
    bleu_of_counts(weights @ counts)                   # [S, n], of S weightings of the images

It differs from other BLEUs in its smoothing: counts get 1e-15 and 1e-9 added so that nothing
divides by zero (Papineni et al. 2002; pycocoevalcap/bleu/bleu_scorer.py). The counts are vectorised
over the whole corpus; corpus BLEU of any (re)sample of images is a sum of them away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from har_jax.metrics import ngrams
from har_jax.metrics.corpus_ngrams import CorpusNgrams

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, Num

_TINY = 1e-15
_SMALL = 1e-9


def bleu_counts_of(counted: CorpusNgrams) -> Int64[np.ndarray, "I columns"]:
    """A row per prediction, in their order.

    Returns:
      int64 [I, 2n+2]: clipped matches of 1..n-grams, n-grams of the caption, its words, and the
      words of the reference whose length is closest (the shorter one of two).
    """
    n_images, n = len(counted.sizes), len(counted.levels)
    correct = []
    for level in counted.levels:
        shared = level.same >= 0
        most = np.zeros(len(level.own), np.int64)  # of any one reference
        np.maximum.at(most, level.same[shared], level.their_count[shared])
        clipped = np.minimum(level.own_count, most)
        correct.append(np.bincount(level.own_image, clipped, n_images))
    own, theirs = counted.lengths, counted.their_lengths
    guess = np.maximum(0, own[:, None] - np.arange(n))
    order = ngrams.pack(np.abs(theirs - own[counted.image_of]), theirs)
    first = np.cumsum(counted.sizes) - counted.sizes
    _, closest = ngrams.unpack(np.minimum.reduceat(order, first))
    return np.column_stack([*correct, guess, own, closest]).astype(np.int64)


def bleu_of_counts(counts: Num[np.ndarray, "*S columns"]) -> Float64[np.ndarray, "*S n"]:
    """BLEU-1..n, in [0, 1], of (sums of) rows of `bleu_counts_of`."""
    n = (counts.shape[-1] - 2) // 2
    correct, guess = counts[..., :n], counts[..., n : 2 * n]
    length, closest = counts[..., -2], counts[..., -1]
    ratio = (length + _TINY) / (closest + _SMALL)
    # An empty caption has ratio ~0: exp underflows to 0 as it should.
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    products = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=-1)
    return products ** (1 / np.arange(1, n + 1)) * brevity[..., None]
