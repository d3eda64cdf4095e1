"""The official "CIDEr" of a corpus: CIDEr-D (see `metrics.cider_d`) with document frequencies from
the references that it scores against, in numpy over the whole corpus at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from har_jax.metrics import ngrams
from har_jax.metrics.corpus_ngrams import CorpusNgrams, sorted_counts

if TYPE_CHECKING:
    from jaxtyping import Float64


def cider_of(counted: CorpusNgrams, *, sigma: float = 6.0) -> Float64[np.ndarray, " I"]:
    """CIDEr-D of each image's prediction, in [0, 10]. It depends on the set of images that are
    scored, and is 0 when there is only one. `sigma`: width of the length penalty, in words."""
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
    lengths = np.maximum(0, counted.lengths - 1)
    their_lengths = np.maximum(0, counted.their_lengths - 1)
    delta = lengths[counted.image_of] - their_lengths
    similarity *= np.exp(-(delta**2) / (2 * sigma**2))
    sums = np.bincount(counted.image_of, similarity, n_images)
    return 10 * sums / len(counted.levels) / counted.sizes
