"""The official "CIDEr" of a corpus: CIDEr-D (see `metrics.cider_d`) with document frequencies from
the references that it scores against, in numpy over the whole corpus at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from har_jax.metrics import ngrams
from har_jax.metrics.corpus_ngrams import CorpusNgrams, count_ngrams, sorted_counts

if TYPE_CHECKING:
    from jaxtyping import Float64

Words = Sequence[str]


def corpus_cider(
    references: Mapping[int, Sequence[Words]],
    predictions: Mapping[int, Words],
    *,
    n: int = 4,
    sigma: float = 6.0,
) -> tuple[float, dict[int, float]]:
    """CIDEr with df from the references of exactly the images that are scored.

    The value depends on that set of images, and is 0 when there is only one.

    Args:
      n: longest n-gram.
      sigma: width of the length penalty, in words.

    Returns:
      (mean over the images, {image id: CIDEr-D}), values in [0, 10].

    Raises:
      UserError: an image without references, or nothing to score.
    """
    counted = count_ngrams(references, predictions, n=n, metric="CIDEr")
    values = cider_of(counted, sigma=sigma)
    return float(np.mean(values)), dict(zip(counted.image_ids, values.tolist(), strict=True))


def cider_of(counted: CorpusNgrams, *, sigma: float = 6.0) -> Float64[np.ndarray, " I"]:
    """CIDEr-D of each image's prediction, in [0, 10]."""
    n_images, n_references = len(counted.sizes), len(counted.image_of)
    similarity = np.zeros(n_references)
    for level in counted.levels:
        # In how many images' references each n-gram occurs.
        pairs, _ = sorted_counts(ngrams.pack(counted.image_of[level.caption], level.theirs))
        frequency = np.bincount(ngrams.unpack(pairs)[1], minlength=level.n_grams)
        idf = math.log(n_images) - np.log(np.maximum(1, frequency))
        own = level.own_count * idf[level.own]
        theirs = level.their_count * idf[level.theirs]
        shared = level.same >= 0
        weight = theirs[shared]
        products = np.minimum(own[level.same[shared]], weight) * weight
        dot = np.bincount(level.caption[shared], products, n_references)
        own_norm = np.sqrt(np.bincount(level.own_image, own**2, n_images))
        their_norm = np.sqrt(np.bincount(level.caption, theirs**2, n_references))
        norms = own_norm[counted.image_of] * their_norm
        similarity += np.divide(dot, norms, out=np.zeros(n_references), where=norms != 0)
    # The length is counted in bigrams, so that 0 and 1 word are the same length.
    lengths, their_lengths = (
        np.maximum(0, x - 1) for x in (counted.lengths, counted.their_lengths)
    )
    delta = lengths[counted.image_of] - their_lengths
    similarity *= np.exp(-(delta**2) / (2 * sigma**2))
    sums = np.bincount(counted.image_of, similarity, n_images)
    return 10 * sums / len(counted.levels) / counted.sizes
