"""BLEU-1..4 with the closest reference length, number for number as pycocoevalcap prints it.

    corpus_bleu(references, predictions)               # of the corpus, and of each image

    counts = bleu_counts(references, predictions)      # [I, 2n+2], a row per image
    bleu_of_counts(counts.sum(0))                      # [n], corpus BLEU-1..n
    bleu_of_counts(weights @ counts)                   # [S, n], of S weightings of the images

It differs from other BLEUs in its smoothing: counts get 1e-15 and 1e-9 added so that nothing
divides by zero (Papineni et al. 2002; pycocoevalcap/bleu/bleu_scorer.py). The counts are vectorised
over the whole corpus; corpus BLEU of any (re)sample of images is a sum of them away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Num

from har_jax.errors import UserError
from har_jax.metrics import ngrams

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
    counts = bleu_counts(references, predictions, n=n)
    per_image = bleu_of_counts(counts).tolist()
    return bleu_of_counts(counts.sum(0)).tolist(), dict(zip(predictions, per_image, strict=True))


def bleu_counts(
    references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words], *, n: int = 4
) -> Int64[np.ndarray, "I columns"]:
    """A row per prediction, in their order.

    Returns:
      int64 [I, 2n+2]: clipped matches of 1..n-grams, n-grams of the caption, its words, and the
      words of the reference whose length is closest (the shorter one of two).

    Raises:
      UserError: an image without references, or nothing to score.
    """
    if not predictions:
        raise UserError("BLEU needs at least one prediction, got none; pass {image: caption}")
    groups = []
    for image_id in predictions:
        if not references.get(image_id):
            raise UserError(f"no references for image {image_id}; BLEU needs at least one")
        groups.append(references[image_id])
    n_images = len(groups)
    ids: dict[str, int] = {}

    def encoded() -> Iterator[list[int]]:
        for caption in predictions.values():
            yield [ids.setdefault(word, len(ids)) for word in caption]
        for group in groups:
            for caption in group:
                yield [ids.setdefault(word, len(ids)) for word in caption]

    words, starts = ngrams.flatten(encoded())
    sizes = np.array([len(group) for group in groups])
    # Captions 0 .. I-1 are the predictions of images 0 .. I-1, the others are references.
    image_of = np.concatenate([np.arange(n_images), np.repeat(np.arange(n_images), sizes)])
    found, _ = ngrams.intern(words, starts, n_words=len(ids), n=n)
    correct = [
        _clipped_matches(nodes, caption, image_of, n_images)
        for nodes, caption in zip(found.levels, found.captions, strict=True)
    ]
    lengths = np.diff(starts)
    own = lengths[:n_images]
    guess = np.maximum(0, own[:, None] - np.arange(n))
    theirs = lengths[n_images:]
    order = ngrams.pack(np.abs(theirs - np.repeat(own, sizes)), theirs)
    _, closest = ngrams.unpack(np.minimum.reduceat(order, np.cumsum(sizes) - sizes))
    return np.column_stack([*correct, guess, own, closest]).astype(np.int64)


def _clipped_matches(
    nodes: Int64[np.ndarray, " m"],
    caption: Int64[np.ndarray, " m"],
    image_of: Int64[np.ndarray, " captions"],
    n_images: int,
) -> Float64[np.ndarray, " I"]:
    """For each image, how many n-grams (of one size) of its caption some reference accounts for."""
    predicted = caption < n_images
    keys = ngrams.pack(image_of[caption], nodes)
    distinct, counts = np.unique(keys[predicted], return_counts=True)
    if not len(distinct):
        return np.zeros(n_images)
    theirs, where = keys[~predicted], caption[~predicted]
    slot = np.minimum(np.searchsorted(distinct, theirs), len(distinct) - 1)
    shared = distinct[slot] == theirs
    pairs, repeats = np.unique(ngrams.pack(where[shared], slot[shared]), return_counts=True)
    most = np.zeros(len(distinct), np.int64)
    np.maximum.at(most, ngrams.unpack(pairs)[1], repeats)
    image, _ = ngrams.unpack(distinct)
    return np.bincount(image, np.minimum(counts, most), n_images)


def bleu_of_counts(counts: Num[np.ndarray, "*S columns"]) -> Float64[np.ndarray, "*S n"]:
    """BLEU-1..n, in [0, 1], of (sums of) rows of `bleu_counts`."""
    n = (counts.shape[-1] - 2) // 2
    correct, guess = counts[..., :n], counts[..., n : 2 * n]
    length, closest = counts[..., -2], counts[..., -1]
    ratio = (length + _TINY) / (closest + _SMALL)
    # An empty caption has ratio ~0: exp underflows to 0 as it should.
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    products = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=-1)
    return products ** (1 / np.arange(1, n + 1)) * brevity[..., None]
