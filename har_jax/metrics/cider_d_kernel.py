"""The inner loop of CIDEr-D, compiled by numba.

One function and no library calls inside it, because each one adds to the compile time at the first
use (about a second, then cached by numba beside the module, or in the user's cache directory when
the package is read-only). It releases the GIL and works on arguments and locals only, so several
threads may score at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from har_jax.metrics.ngrams import EMPTY, MULTIPLIER


def _score(
    words,
    starts,
    images,
    keys,
    idf,
    shift,
    n_words,
    unseen_idf,
    image_refs,
    nodes,
    node_starts,
    holder_starts,
    holders,
    holds,
    ref_norms,
    ref_lengths,
    sigma,
    out,
):
    """CIDEr-D of each candidate against the references of its image, written to `out`.

    Args:
      words: int32 [words], candidates' word ids; ids >= n_words are words the table does not know.
      starts: int64 [C+1], where each candidate starts and ends in `words`.
      images: int64 [C], the row of each candidate's image in `image_refs`.
      keys, idf, shift: the n-grams, see `ngrams.Table`; idf are its values.
      unseen_idf: the idf of an n-gram outside the table.
      image_refs: int64 [I+1], the references of image i are `image_refs[i] .. image_refs[i+1]`.
      nodes: int32, for each (image, level) the sorted rows of its references' n-grams, each once.
      node_starts: int64 [I*n+1], where the nodes of (image, level) start and end.
      holder_starts: int32 [nodes+1], where the references that hold each node start and end.
      holders, holds: int32, these references, counted from the image's first, and how often it
        stands in each.
      ref_norms: float64 [R, n], length of the tf-idf vector; ref_lengths: int64 [R], words.
      sigma: width of the length penalty.
      out: float64 [C].
    """
    n = ref_norms.shape[1]
    n_nodes = keys.shape[0]
    last_slot = n_nodes - n_words - 1
    longest = 0
    for c in range(starts.shape[0] - 1):
        longest = max(longest, starts[c + 1] - starts[c])
    node = np.empty(longest, np.int64)
    distinct = np.empty(longest, np.int64)
    weight = np.empty(longest, np.float64)
    most = 0
    for i in images:
        most = max(most, image_refs[i + 1] - image_refs[i])
    penalty = np.empty(most, np.float64)
    similarity = np.empty(most, np.float64)
    for c in range(starts.shape[0] - 1):
        begin = starts[c]
        size = starts[c + 1] - begin
        ref_begin = image_refs[images[c]]
        ref_end = image_refs[images[c] + 1]
        for r in range(ref_begin, ref_end):
            # The length is counted in bigrams, so that 0 and 1 word are the same length.
            delta = max(size - 1, 0) - max(ref_lengths[r] - 1, 0)
            penalty[r - ref_begin] = math.exp(-(delta * delta) / (2.0 * sigma * sigma))
        total = 0.0
        for k in range(min(n, size)):
            count = size - k
            # Rows of the (k+1)-grams; -1 for one that the table does not hold.
            for i in range(count):
                word = words[begin + i + k]
                if k == 0:
                    node[i] = word if word < n_words else -1
                elif node[i] >= 0:
                    key = (np.uint64(node[i]) << np.uint64(32)) | np.uint64(word)
                    slot = np.int64((key * np.uint64(MULTIPLIER)) >> np.uint64(shift))
                    while keys[n_words + slot] != key and keys[n_words + slot] != np.uint64(EMPTY):
                        slot = (slot + 1) & last_slot
                    node[i] = n_words + slot if keys[n_words + slot] == key else -1
            # Sorted by insertion (captions are short). Unknown n-grams still count in the norm, so
            # equal ones must share an identity: the position where they first occur.
            for i in range(count):
                value = node[i]
                if value < 0:
                    value = n_nodes + i
                    for j in range(i):
                        if node[j] < 0:
                            same = True
                            for w in range(k + 1):
                                if words[begin + i + w] != words[begin + j + w]:
                                    same = False
                                    break
                            if same:
                                value = n_nodes + j
                                break
                j = i
                while j > 0 and distinct[j - 1] > value:
                    distinct[j] = distinct[j - 1]
                    j -= 1
                distinct[j] = value
            # Runs of equal nodes become tf * idf.
            m = 0
            norm = 0.0
            i = 0
            while i < count:
                value = distinct[i]
                j = i
                while j < count and distinct[j] == value:
                    j += 1
                w = (j - i) * (idf[value] if value < n_nodes else unseen_idf)
                distinct[m] = value
                weight[m] = w
                norm += w * w
                m += 1
                i = j
            norm = math.sqrt(norm)
            for r in range(ref_end - ref_begin):
                similarity[r] = 0.0
            i = 0
            j = node_starts[images[c] * n + k]
            end = node_starts[images[c] * n + k + 1]
            while i < m and j < end:
                value = nodes[j]
                if value == distinct[i]:
                    for h in range(holder_starts[j], holder_starts[j + 1]):
                        w = holds[h] * idf[value]
                        similarity[holders[h]] += min(weight[i], w) * w
                    i += 1
                    j += 1
                else:  # without a branch: which side is smaller cannot be predicted
                    smaller = int(value < distinct[i])
                    j += smaller
                    i += 1 - smaller
            for r in range(ref_end - ref_begin):
                if norm != 0.0 and ref_norms[ref_begin + r, k] != 0.0:
                    similarity[r] /= norm * ref_norms[ref_begin + r, k]
                total += similarity[r] * penalty[r]
        out[c] = 10.0 * total / n / (ref_end - ref_begin)


@functools.cache
def kernel() -> Callable[..., None]:
    """`_score`, compiled on its first call. numba is imported here because it takes a while."""
    import numba

    try:
        return numba.njit(_score, nogil=True, cache=True)
    except RuntimeError:  # no directory to cache in
        return numba.njit(_score, nogil=True)
