"""The n-grams of a caption, and exact identities of many as a trie in flat numpy arrays.

An n-gram is identified by (id of its first n-1 words, id of its last word), level by level, so
different n-grams are never taken for the same and any vocabulary size works. Node ids are
level-major and sorted by (parent, word) inside a level, so they do not depend on the order of the
captions; `hash_table` lays them out for fast look-up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from har_jax.metrics.word_lists import refuse_text

if TYPE_CHECKING:
    from jaxtyping import Float64, Int, Int32, Int64, UInt64

_WORD_BITS = 32
_WORD_MASK = (1 << _WORD_BITS) - 1


def of(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of one caption, in order, each as often as it stands there.

    Raises:
      UserError: a text instead of words.
    """
    refuse_text(words)
    return zip(*(words[i:] for i in range(n)), strict=False)


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """Every n-gram occurrence of a set of captions, as node ids.

    `levels[k][i]` is the node of the (k+1)-gram that starts at the i-th position where a
    (k+1)-gram fits; `captions[k][i]` is the caption it stands in.
    """

    keys: list[Int64[np.ndarray, " _nodes"]]  # per level, sorted unique (parent node, last word)
    levels: list[Int64[np.ndarray, " _occurrences"]]
    captions: list[Int64[np.ndarray, " _occurrences"]]


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
        words += caption
        ends.append(len(words))
    return np.asarray(words, np.int32), np.asarray(ends, np.int64)


def intern(
    words: Int32[np.ndarray, " words"],
    starts: Int64[np.ndarray, " captions_plus_1"],
    *,
    n_words: int,
    n: int,
    known: Sequence[Int64[np.ndarray, " _nodes"]] = (),
) -> tuple[Ngrams, list[Int64[np.ndarray, " _nodes"]]]:
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


@dataclasses.dataclass(frozen=True)
class Table:
    """The nodes in a hash table with open addressing: one cache line per look-up.

    A row *is* the identity of an n-gram: rows 0 .. n_words-1 are the words, the others hold longer
    n-grams under the exact key (row of the parent, last word), so nothing can collide unnoticed.

    Attributes:
      keys: `EMPTY` where there is no n-gram.
      values: what is kept per n-gram, interleaved in memory with `keys`.
      row_of: the row of each node.
      shift: a key's first slot, counted from n_words, is `(key * MULTIPLIER) >> shift`.
    """

    keys: UInt64[np.ndarray, " rows"]
    values: Float64[np.ndarray, " rows"]
    row_of: Int64[np.ndarray, " nodes"]
    shift: int


MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Fibonacci hashing (Knuth 6.4)
EMPTY = 2**64 - 1


def hash_table(
    keys: Sequence[Int64[np.ndarray, " _nodes"]], values: Float64[np.ndarray, " nodes"]
) -> Table:
    """Puts nodes (packed keys of each level, as `intern` returns them) into a table."""
    n_words, n_nodes = len(keys[0]), sum(map(len, keys))
    bits = max(2, int(2 * (n_nodes - n_words)).bit_length())  # at most half full
    slots = 1 << bits
    # Two columns side by side, so that a key and its value are one memory access.
    rows = np.empty((n_words + slots, 2), np.uint64)
    table_keys, table_values = rows[:, 0], rows.view(np.float64)[:, 1]
    table_keys[:] = EMPTY
    table_values[:] = 0
    row_of = np.arange(n_nodes, dtype=np.int64)
    owner = np.full(slots, -1, np.int64)
    offset = n_words
    for level in keys[1:]:
        parent, word = unpack(level)
        key = pack(row_of[parent], word).astype(np.uint64)
        slot = ((key * np.uint64(MULTIPLIER)) >> np.uint64(64 - bits)).astype(np.int64)
        pending = np.arange(len(level))
        while len(pending):
            # All of them try their slot at once; the last writer of a free slot gets it, and the
            # others go on to the next slot.
            free = pending[owner[slot[pending]] < 0]
            owner[slot[free]] = free + offset
            pending = pending[owner[slot[pending]] != pending + offset]
            slot[pending] = (slot[pending] + 1) & (slots - 1)
        row_of[offset : offset + len(level)] = n_words + slot
        table_keys[n_words + slot] = key
        offset += len(level)
    table_values[row_of] = values
    return Table(table_keys, table_values, row_of, 64 - bits)
