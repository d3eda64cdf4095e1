"""The n-grams of one caption per image and of the image's references, counted once for all metrics.

counted = count_ngrams(references, predictions)
bleu_counts_of(counted); cider_of(counted)          # metrics.bleu_counts, .corpus_cider
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from har_jax.errors import UserError
from har_jax.metrics import ngrams
from har_jax.metrics.word_lists import Words, refuse_texts, refuse_texts_of_images
from har_jax.text.ptb import split_tokens

if TYPE_CHECKING:
    from jaxtyping import Int64


@dataclasses.dataclass(frozen=True)
class Level:
    """The n-grams of one size n. An entry is an n-gram in a caption, however often it stands there.

    Attributes:
      own, own_image, own_count: entry by entry of the predictions, sorted by image, then n-gram:
        the n-gram as a number in 0 .. n_grams-1, the image's row, how often.
      theirs, caption, their_count: the same of the references; `caption` is a reference's row.
      same: for each entry of the references, the entry of the image's prediction that holds the
        same n-gram; -1 where the prediction has it not.
      n_grams: how many n-grams of this size there are.
    """

    own: Int64[np.ndarray, " m"]
    own_image: Int64[np.ndarray, " m"]
    own_count: Int64[np.ndarray, " m"]
    theirs: Int64[np.ndarray, " k"]
    caption: Int64[np.ndarray, " k"]
    their_count: Int64[np.ndarray, " k"]
    same: Int64[np.ndarray, " k"]
    n_grams: int


@dataclasses.dataclass(frozen=True)
class CorpusNgrams:
    """See the module's docstring.

    Attributes:
      image_ids: [I], in the order of the predictions; an image's row is its place here.
      lengths: [I], words of each prediction; their_lengths: [C], of each reference.
      image_of: [C], the row of each reference's image, ascending.
      sizes: [I], references of each image.
      levels: of 1-grams, 2-grams, ...
    """

    image_ids: list[int]
    lengths: Int64[np.ndarray, " I"]
    their_lengths: Int64[np.ndarray, " C"]
    image_of: Int64[np.ndarray, " C"]
    sizes: Int64[np.ndarray, " I"]
    levels: list[Level]


def count_ngrams(
    references: Mapping[int, Sequence[Words]],
    predictions: Mapping[int, Words],
    *,
    n: int = 4,
    metric: str = "the metrics",
) -> CorpusNgrams:
    """Counts the 1..n-grams. Of PTB tokens that hold white space, such as "1 1/2", the words count,
    see `text.ptb`.

    Args:
      metric: what they are counted for, for errors.

    Raises:
      UserError: an image without references, nothing to score, or a text instead of words.
    """
    if not predictions:
        raise UserError(f"{metric} needs at least one prediction, got none")
    for image_id in predictions:
        if not references.get(image_id):
            raise UserError(f"no references for image {image_id}; {metric} needs at least one")
    refuse_texts(predictions.values())
    groups = [references[image_id] for image_id in predictions]
    refuse_texts_of_images(groups)
    n_images = len(groups)
    # Captions 0 .. I-1 are the predictions, the others the references.
    captions = [*predictions.values(), *itertools.chain.from_iterable(groups)]
    words = list(itertools.chain.from_iterable(captions))
    if wide := {word for word in set(words) if split_tokens([word]) != [word]}:
        captions = [c if wide.isdisjoint(c) else split_tokens(c) for c in captions]
        words = list(itertools.chain.from_iterable(captions))
    ids: dict[str, int] = collections.defaultdict(itertools.count().__next__)
    flat = np.fromiter(map(ids.__getitem__, words), np.int32, len(words))
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    sizes = np.fromiter(map(len, groups), np.int64, n_images)
    image_of = np.repeat(np.arange(n_images), sizes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found, _ = ngrams.intern(flat, starts, n_words=len(ids), n=n)
    levels, offset = [], 0
    for keys, nodes, caption in zip(found.keys, found.levels, found.captions, strict=True):
        levels.append(_level(nodes - offset, caption, image_of, n_images, len(keys)))
        offset += len(keys)
    own, theirs = lengths[:n_images], lengths[n_images:]
    return CorpusNgrams(list(predictions), own, theirs, image_of, sizes, levels)


def _level(
    nodes: Int64[np.ndarray, " m"],
    caption: Int64[np.ndarray, " m"],
    image_of: Int64[np.ndarray, " C"],
    n_images: int,
    n_grams: int,
) -> Level:
    # The predictions' occurrences come first, and sorting keeps them there.
    entries, counts = sorted_counts(ngrams.pack(caption, nodes))
    row, last = ngrams.unpack(entries)
    gram = last.astype(np.int64)
    split = int(np.searchsorted(row, n_images))
    theirs, their_caption = gram[split:], row[split:] - n_images
    wanted = ngrams.pack(image_of[their_caption], theirs)
    own_entries = entries[:split]
    at = np.minimum(np.searchsorted(own_entries, wanted), max(0, split - 1))
    same = np.where(own_entries[at] == wanted, at, -1) if split else np.full(len(wanted), -1)
    own = gram[:split], row[:split], counts[:split]
    return Level(*own, theirs, their_caption, counts[split:], same, n_grams)


def sorted_counts(
    keys: Int64[np.ndarray, " m"],
) -> tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " u"]]:
    """The distinct values in ascending order, and how often each occurs.

    Sorted here: numpy's unique hashes integers, which takes 20 times as long on millions.
    """
    keys = np.sort(keys)
    fresh = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    first = np.flatnonzero(fresh)
    return keys[first], np.diff(first, append=len(keys))
