"""Exact n-gram identities as a trie in flat numpy arrays.

An n-gram is identified by (id of its first n-1 words, id of its last word), level by level, so
there are no hash collisions and any vocabulary size works. Node ids are level-major and sorted by
(parent, word) inside a level: the children of a node are one contiguous run, which a reader finds
without any hash table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64

_WORD_BITS = 32
_WORD_MASK = (1 << _WORD_BITS) - 1


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """Every n-gram occurrence of a set of captions, as node ids.

    `levels[k][i]` is the node of the (k+1)-gram that starts at the i-th position where a
    (k+1)-gram fits; `captions[k][i]` is the caption it stands in.
    """

    keys: list[Int64[np.ndarray, " nodes"]]  # per level, sorted unique (parent node, last word)
    levels: list[Int64[np.ndarray, " occurrences"]]
    captions: list[Int64[np.ndarray, " occurrences"]]


def pack(parent: Int[np.ndarray, " m"], word: Int[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """One sortable int64 per (parent node, word)."""
    return (parent.astype(np.int64) << _WORD_BITS) | word.astype(np.int64)


def unpack(
    keys: Int64[np.ndarray, " m"],
) -> tuple[Int64[np.ndarray, " m"], Int32[np.ndarray, " m"]]:
    """The inverse of `pack`."""
    return keys >> _WORD_BITS, (keys & _WORD_MASK).astype(np.int32)


def flatten(
    captions: Iterable[Sequence[int]],
) -> tuple[Int32[np.ndarray, " words"], Int64[np.ndarray, " captions_plus_1"]]:
    """Ragged captions of word ids -> (all ids in a row, where each caption starts and ends)."""
    words: list[int] = []
    ends = [0]
    for caption in captions:
        words.extend(caption)
        ends.append(len(words))
    return np.asarray(words, np.int32), np.asarray(ends, np.int64)


def intern(
    words: Int32[np.ndarray, " words"],
    starts: Int64[np.ndarray, " captions_plus_1"],
    *,
    n_words: int,
    n: int,
    known: Sequence[Int64[np.ndarray, " nodes"]] = (),
) -> tuple[Ngrams, list[Int64[np.ndarray, " nodes"]]]:
    """Gives every 1..n-gram of the captions a node.

    Level 1 is the vocabulary itself: node w is word w. `known` holds the packed keys of levels 2..n
    of another trie over the *same* word ids (parents numbered as in that trie); they are merged in.

    Returns:
      The n-grams, and for each level the node that each node of `known` became.
    """
    caption_of = np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))
    left = starts[caption_of + 1] - np.arange(len(words), dtype=np.int64)  # words to the end
    keys = [np.arange(n_words, dtype=np.int64)]
    levels, captions = [words.astype(np.int64)], [caption_of]
    moved = [np.arange(n_words, dtype=np.int64)]
    position = np.arange(len(words), dtype=np.int64)
    offset = 0
    for k in range(1, n):
        fits = left[position] > k
        position = position[fits]
        occurring = pack(levels[-1][fits], words[position + k])
        old = np.zeros(0, np.int64)
        if known:
            parent, word = unpack(known[k - 1])
            old = pack(np.concatenate(moved)[parent], word)
        unique, inverse = np.unique(np.concatenate([old, occurring]), return_inverse=True)
        offset += len(keys[-1])
        keys.append(unique)
        moved.append(inverse[: len(old)] + offset)
        levels.append(inverse[len(old) :] + offset)
        captions.append(captions[-1][fits])
    return Ngrams(keys, levels, captions), moved


def children(
    keys: Sequence[Int64[np.ndarray, " nodes"]],
) -> tuple[Int64[np.ndarray, " nodes_plus_1"], Int32[np.ndarray, " nodes"]]:
    """The trie as a reader wants it: (first child of each node, last word of each node).

    The children of node p are the nodes `first[p] .. first[p+1]`, sorted by last word.
    """
    n_nodes = sum(map(len, keys))
    n_words = len(keys[0])
    parent, word = unpack(np.concatenate(keys[1:])) if len(keys) > 1 else unpack(keys[0][:0])
    first = n_words + np.searchsorted(parent, np.arange(n_nodes + 1, dtype=np.int64))
    return first.astype(np.int64), np.concatenate([np.arange(n_words, dtype=np.int32), word])
