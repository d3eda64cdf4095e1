"""CIDEr-D (Vedantam et al., arXiv 1411.5726), exactly as pycocoevalcap and SCST trainers have it.

With g an n-gram, tf its raw count, N the number of images and df(g) the number of *images* whose
references hold g:

    v_n(g) = tf(g) (ln N - ln max(1, df(g)))                                      n = 1..4
    sim_n(h, r) = sum_g min(h_g, r_g) r_g / (|h| |r|) exp(-(len h - len r)^2 / (2 sigma^2))
    CIDEr-D = 10 mean_n mean_r sim_n(h, r)                                        in [0, 10]

What papers print as "CIDEr" on COCO is this (times 100), with df taken from the evaluated
references: `metrics.corpus_cider`. A reward takes df from the training references: `CiderD`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int32, Int64

from har_jax.errors import UserError
from har_jax.ids import read_number
from har_jax.metrics import ngrams
from har_jax.metrics.corpus_ngrams import sorted_counts
from har_jax.metrics.document_frequency import EOS_WORD, DocumentFrequency
from har_jax.metrics.word_lists import Words, refuse_texts, refuse_texts_of_images


class CiderD:
    """CIDEr-D against fixed references, which are cooked once. Read-only and thread-safe.

    Args:
      df: document frequencies; n is theirs.
      references: words of each caption of each image.
      eos: append `EOS_WORD` to the references, and to the candidates that ended.
      sigma: width of the length penalty, in words.

    Raises:
      UserError: no images, an image without references, or a text instead of words.
    """

    def __init__(
        self,
        df: DocumentFrequency,
        references: Mapping[int, Sequence[Words]],
        *,
        eos: bool,
        sigma: float = 6.0,
    ):
        if not references:
            raise UserError("CIDEr-D needs references of at least one image, got none")
        refuse_texts_of_images(references)
        for image_id, captions in references.items():
            if not captions:
                raise UserError(f"image {image_id} has no references; CIDEr-D needs at least one")
        self.df = df
        self.eos = eos
        self.sigma = float(sigma)
        self._row = {read_number(image_id): row for row, image_id in enumerate(references)}
        if len(self._row) < len(references):
            raise UserError("two of the references' image ids are one (such as 1 and '1')")
        self._vocabulary = dict(df.vocabulary)
        ids, ends = self._vocabulary, [0]

        def encoded() -> Iterator[list[int]]:
            for image in references.values():
                for caption in image:
                    words = [ids.setdefault(word, len(ids)) for word in caption]
                    yield [*words, 0] if eos else words
                ends.append(ends[-1] + len(image))

        flat, starts = ngrams.flatten(encoded())
        self._image_refs = np.asarray(ends, np.int64)
        self._cook(flat, starts)
        self.score([], [])  # compiles now, not inside the first training step

    def _cook(
        self, flat: Int32[np.ndarray, " words"], starts: Int64[np.ndarray, " captions_plus_1"]
    ) -> None:
        """Builds the table of n-grams of df and references with their idf, and the references."""
        df, n = self.df, self.df.n
        # 1. All n-grams of both in one trie. Words outside df get ids after its own: its nodes of
        # levels >= 2 move by that many.
        added = len(self._vocabulary) - len(df.vocabulary)
        known = [_shift_parents(keys, len(df.vocabulary), added) for keys in df.keys]
        found, moved = ngrams.intern(flat, starts, n_words=len(self._vocabulary), n=n, known=known)
        # 2. Their document frequencies, and idf: ln N - ln max(1, df).
        counts = np.zeros(sum(map(len, found.keys)), np.int64)
        moved[0] = moved[0][: len(df.vocabulary)]
        for nodes, count in zip(moved, df.counts, strict=True):
            counts[nodes] = count
        self._log_n = math.log(df.n_images)
        idf = self._log_n - np.log(np.maximum(1, counts))
        self._table = ngrams.hash_table(found.keys, idf)
        # 3. How often each n-gram stands in each reference, and the length of its tf-idf vector.
        self._ref_lengths = lengths = np.diff(starts)
        group = np.concatenate([c * n + k for k, c in enumerate(found.captions)])
        occurrences = ngrams.pack(group, self._table.row_of[np.concatenate(found.levels)])
        distinct, repeats = sorted_counts(occurrences)
        group, row = ngrams.unpack(distinct)
        weights = (repeats * self._table.values[row]) ** 2
        squares = np.bincount(group, weights, minlength=len(lengths) * n)
        self._ref_norms = np.sqrt(squares).reshape(len(lengths), n)
        # 4. What the kernel merges a candidate with, its `held`: one sorted list of n-grams per
        # (image, level), and for each of its n-grams the references that hold it, and how often.
        n_images = len(self._image_refs) - 1
        ref, level = np.divmod(group, n)
        image = np.repeat(np.arange(n_images), np.diff(self._image_refs))[ref]
        keys = ngrams.pack(image * n + level, row)
        order = np.argsort(keys, kind="stable")
        keys, refs = sorted_counts(keys)
        list_of, nodes = ngrams.unpack(keys)
        own = (ref - self._image_refs[image])[order]  # counted from the image's first one
        wide = np.int32 if len(row) < 2**31 else np.int64
        ends = np.concatenate([[0], np.cumsum(refs)]).astype(wide)
        holders, holds = own.astype(np.int32), repeats[order].astype(np.int32)
        node_starts = np.searchsorted(list_of, np.arange(n_images * n + 1))
        self._held = node_starts, (nodes, ends, holders, holds)

    def score(
        self,
        image_ids: Sequence[int] | Int64[np.ndarray, " B"],
        captions: Sequence[Sequence[Words]],
        ended: Sequence[Sequence[bool]] | np.ndarray | None = None,
    ) -> Float64[np.ndarray, "B R"]:
        """CIDEr-D of R captions (as words) of each of B images, in [0, 10].

        Args:
          ended: [B, R], whether the caption reached EOS; None means that all did. Without `eos` it
            has no effect.

        Raises:
          UserError: an image without references, lengths that do not fit together, or a text
            instead of words.
        """
        given = len(image_ids)
        if given != len(captions):
            raise UserError(f"got {given} image ids for captions of {len(captions)} images")
        width = len(captions[0]) if len(captions) else 0
        rows = []
        for image_id, group in zip(image_ids, captions, strict=True):
            refuse_texts(group)
            if len(group) != width:
                raise UserError(
                    f"image {image_id} has {len(group)} captions, the first image has {width}; "
                    "every image of a batch needs as many"
                )
            row = self._row.get(read_number(image_id))
            if row is None:
                raise UserError(
                    f"no references for image {image_id} (there are references of "
                    f"{len(self._row)} images); score images of the split the scorer was built from"
                )
            rows.extend([row] * width)
        count = len(rows)
        finished = [True] * count if ended is None else np.asarray(ended).reshape(-1).tolist()
        if len(finished) != count:
            raise UserError(f"`ended` has {len(finished)} values for {count} captions")
        words: list[str] = []
        starts = [0]
        for caption, done in zip(itertools.chain.from_iterable(captions), finished, strict=True):
            words += caption
            if done and self.eos:
                words.append(EOS_WORD)
            starts.append(len(words))
        from har_jax.metrics.cider_d_kernel import score  # numba takes a while

        out = np.empty(count, np.float64)
        score(
            self._ids(words),
            np.asarray(starts, np.int64),
            np.asarray(rows, np.int64),
            (self._table.keys, self._table.values, self._table.shift),
            len(self._vocabulary),
            self._log_n,
            (self._image_refs, self._ref_norms, self._ref_lengths),
            self._held,
            self.sigma,
            out,
        )
        return out.reshape(len(captions), width)

    def _ids(self, words: Words) -> Int32[np.ndarray, " words"]:
        """Word ids; words outside the vocabulary get the next ids after it, for this call only."""
        known = map(self._vocabulary.get, words, itertools.repeat(-1))
        ids = np.fromiter(known, np.int32, len(words))
        unknown: dict[str, int] = {}
        for place in np.flatnonzero(ids < 0).tolist():
            ids[place] = unknown.setdefault(words[place], len(self._vocabulary) + len(unknown))
        return ids


def _shift_parents(
    keys: Int64[np.ndarray, " nodes"], n_words: int, added: int
) -> Int64[np.ndarray, " nodes"]:
    """Renumbers the parents of a level after `added` words were appended to `n_words`."""
    parent, word = ngrams.unpack(keys)
    return ngrams.pack(np.where(parent < n_words, parent, parent + added), word)
