"""The inner loop of CIDEr-D, compiled by numba (which takes a while to import: import this late).

Compiled at the first use, which takes some seconds, then cached by numba beside the module, or in
the user's cache directory when the package is read-only. It releases the GIL and works on arguments
and locals only, so several threads may score at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from har_jax.metrics.ngrams import EMPTY, MULTIPLIER


def _step(function: Callable[..., Any]) -> Callable[..., Any]:
    """As if it stood in `score`: calls cost 4 % of the time."""
    return numba.njit(inspect.unwrap(function), inline="always")


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    function = inspect.unwrap(function)  # tests wrap it in a check of annotations
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # no directory to cache in
        return numba.njit(function, nogil=True)


@_step
def _look_up(node, words, k, keys, shift, n_words):
    """Turns the rows of k-grams into those of the (k+1)-grams that start at the same places; -1
    for one that the table does not hold."""
    last_slot = keys.shape[0] - n_words - 1
    for i in range(words.shape[0] - k):
        word = words[i + k]
        if k == 0:
            node[i] = word if word < n_words else -1
        elif node[i] >= 0:
            key = (np.uint64(node[i]) << np.uint64(32)) | np.uint64(word)
            slot = np.int64((key * np.uint64(MULTIPLIER)) >> np.uint64(shift))
            while keys[n_words + slot] != key and keys[n_words + slot] != np.uint64(EMPTY):
                slot = (slot + 1) & last_slot
            node[i] = n_words + slot if keys[n_words + slot] == key else -1


@_step
def _first_equal(node, words, k, i):
    """Where the unknown (k+1)-gram at i stands first in the caption."""
    for j in range(i):
        if node[j] < 0:
            same = True
            for w in range(k + 1):
                if words[i + w] != words[j + w]:
                    same = False
                    break
            if same:
                return j
    return i


@_step
def _sort(node, words, k, n_nodes, distinct):
    """Writes a number for each (k+1)-gram into `distinct`, in order, by insertion: captions are
    short. Unknown ones count in the norm, so equal ones must share a number: n_nodes and a place.
    """
    for i in range(words.shape[0] - k):
        value = node[i] if node[i] >= 0 else n_nodes + _first_equal(node, words, k, i)
        j = i
        while j > 0 and distinct[j - 1] > value:
            distinct[j] = distinct[j - 1]
            j -= 1
        distinct[j] = value


@_step
def _weigh(distinct, count, idf, unseen_idf, weight):
    """Makes runs of equal identities one each, with the weight tf * idf.

    Returns:
      (how many they are, the length of the vector of their weights).
    """
    m, i = 0, 0
    square = 0.0
    while i < count:
        value = distinct[i]
        j = i
        while j < count and distinct[j] == value:
            j += 1
        w = (j - i) * (idf[value] if value < idf.shape[0] else unseen_idf)
        distinct[m] = value
        weight[m] = w
        square += w * w
        m += 1
        i = j
    return m, math.sqrt(square)


@_step
def _dot(distinct, weight, m, idf, first, end, held, similarity):
    """Adds sum_g min(h_g, r_g) r_g of each reference r to `similarity`: two sorted lists, of the
    candidate's and of all the references' n-grams, walked side by side."""
    nodes, holder_starts, holders, holds = held
    i, j = 0, first
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


@_step
def _penalties(size, ref_lengths, sigma, penalty):
    """exp(-(len h - len r)^2 / (2 sigma^2)) of each reference r."""
    for r in range(ref_lengths.shape[0]):
        # The length is counted in bigrams, so that 0 and 1 word are the same length.
        delta = max(size - 1, 0) - max(ref_lengths[r] - 1, 0)
        penalty[r] = math.exp(-(delta * delta) / (2.0 * sigma * sigma))


@_compiled
def score(words, starts, images, table, n_words, unseen_idf, references, held, sigma, out):
    """CIDEr-D of each candidate against the references of its image, written to `out`.

    Args:
      words: int32 [words], candidates' word ids; ids >= n_words are words the table does not know.
      starts: int64 [C+1], where each candidate starts and ends in `words`.
      images: int64 [C], the row of each candidate's image in `image_refs`.
      table: (keys, idf, shift), the n-grams, see `ngrams.Table`; idf are its values.
      unseen_idf: the idf of an n-gram outside the table.
      references: (image_refs, ref_norms, ref_lengths). int64 [I+1]: the references of image i are
        `image_refs[i] .. image_refs[i+1]`; float64 [R, n]: length of the tf-idf vector; int64 [R]:
        words.
      held: (node_starts, (nodes, holder_starts, holders, holds)). int64 [I*n+1]: where the nodes of
        (image, level) start and end; int32: for each (image, level) the sorted rows of its
        references' n-grams, each once; int32 [nodes+1]: where the references that hold each node
        start and end; int32: these references, counted from the image's first; int32: how often it
        stands in each.
      sigma: width of the length penalty.
      out: float64 [C].
    """
    keys, idf, shift = table
    image_refs, ref_norms, ref_lengths = references
    node_starts, lists = held
    n = ref_norms.shape[1]
    longest = 0
    for c in range(starts.shape[0] - 1):
        longest = max(longest, starts[c + 1] - starts[c])
    most = 0
    for i in images:
        most = max(most, image_refs[i + 1] - image_refs[i])
    node, distinct = np.empty(longest, np.int64), np.empty(longest, np.int64)
    weight, penalty, similarity = np.empty(longest), np.empty(most), np.empty(most)
    for c in range(starts.shape[0] - 1):
        own = words[starts[c] : starts[c + 1]]
        first, last = image_refs[images[c]], image_refs[images[c] + 1]
        # 1. What each reference costs by its length.
        _penalties(own.shape[0], ref_lengths[first:last], sigma, penalty)
        total = 0.0
        for k in range(min(n, own.shape[0])):
            # 2. The rows of the candidate's (k+1)-grams, from those of its k-grams.
            _look_up(node, own, k, keys, shift, n_words)
            # 3. Each of them once, in the order of the references' lists, with its weight.
            _sort(node, own, k, keys.shape[0], distinct)
            m, norm = _weigh(distinct, own.shape[0] - k, idf, unseen_idf, weight)
            # 4. The products with all references of the image at once.
            similarity[: last - first] = 0.0
            at = images[c] * n + k
            _dot(distinct, weight, m, idf, node_starts[at], node_starts[at + 1], lists, similarity)
            # 5. Cosines, each with its reference's penalty.
            for r in range(last - first):
                if norm != 0.0 and ref_norms[first + r, k] != 0.0:
                    similarity[r] /= norm * ref_norms[first + r, k]
                total += similarity[r] * penalty[r]
        out[c] = 10.0 * total / n / (last - first)
