"""CIDEr-D (Vedantam et al., arXiv 1411.5726), exactly as pycocoevalcap and SCST trainers have it.

With g an n-gram, tf its raw count, N the number of images and df(g) the number of *images* whose
references hold g:

    v_n(g) = tf(g) (ln N - ln max(1, df(g)))                                      n = 1..4
    sim_n(h, r) = sum_g min(h_g, r_g) r_g / (|h| |r|) exp(-(len h - len r)^2 / (2 sigma^2))
    CIDEr-D = 10 mean_n mean_r sim_n(h, r)                                        in [0, 10]

What papers print as "CIDEr" on COCO is this (times 100), with df taken from the evaluated
references: `metrics.cider`. A reward takes df from the training references: `CiderD`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from har_jax.errors import UserError
from har_jax.metrics import ngrams
from har_jax.metrics.cider_d_kernel import kernel
from har_jax.metrics.corpus_ngrams import sorted_counts

Words = Sequence[str]

EOS_WORD = " "  # a word of its own: no tokenizer that splits at spaces can produce it
_FORMAT = 1


class DocumentFrequency:
    """In how many images' references each 1..n-gram occurs. Immutable.

    Every reference is counted with `EOS_WORD` at its end, so one table serves scorers with and
    without EOS.

    Attributes:
      n_images: number of images N (not its logarithm).
      n: longest n-gram.
      name: what was counted ("train"), for signatures.
      vocabulary: word ids; `EOS_WORD` is 0 and the others are sorted.
    """

    def __init__(
        self,
        words: Sequence[str],
        keys: Sequence[Int64[np.ndarray, " nodes"]],
        counts: Sequence[Int32[np.ndarray, " nodes"]],
        *,
        n_images: int,
        name: str,
    ):
        self.n_images = n_images
        self.n = len(counts)
        self.name = name
        self.vocabulary = {word: i for i, word in enumerate(words)}
        self.keys = list(keys)
        self.counts = list(counts)

    @classmethod
    def from_references(
        cls, references: Iterable[Iterable[Words]], *, n: int = 4, name: str = "references"
    ) -> DocumentFrequency:
        """Counts the references: for each image, the words of each of its captions.

        Raises:
          UserError: there is no image.
        """
        ids: dict[str, int] = {EOS_WORD: 0}
        images: list[int] = []
        n_images = 0

        def encoded() -> Iterator[list[int]]:
            nonlocal n_images
            for image in references:
                for caption in image:
                    images.append(n_images)
                    yield [ids.setdefault(word, len(ids)) for word in (*caption, EOS_WORD)]
                n_images += 1

        flat, starts = ngrams.flatten(encoded())
        if n_images == 0:
            raise UserError(
                "document frequencies need at least one image, got none; pass {image: captions}"
            )
        vocabulary = [EOS_WORD, *sorted(word for word in ids if word != EOS_WORD)]
        rank = np.empty(len(ids), np.int32)
        rank[[ids[word] for word in vocabulary]] = np.arange(len(ids), dtype=np.int32)
        flat = rank[flat]
        found, _ = ngrams.intern(flat, starts, n_words=len(ids), n=n)
        image_of = np.asarray(images, np.int64)
        counts = []
        offset = 0
        for keys, nodes, caption in zip(found.keys, found.levels, found.captions, strict=True):
            # Sorted here: numpy's unique hashes integers, which takes 20 times as long on these.
            pairs = np.sort(ngrams.pack(image_of[caption], nodes - offset))
            _, once_per_image = ngrams.unpack(pairs[np.diff(pairs, prepend=-1) != 0])
            counts.append(np.bincount(once_per_image, minlength=len(keys)).astype(np.int32))
            offset += len(keys)
        return cls(vocabulary, found.keys[1:], counts, n_images=n_images, name=name)

    def get(self, ngram: Words) -> int:
        """Document frequency of an n-gram; 0 when it was never seen (scorers take max(1, df))."""
        if not 1 <= len(ngram) <= self.n or ngram[0] not in self.vocabulary:
            return 0
        node, offset = self.vocabulary[ngram[0]], 0
        for k, word in enumerate(ngram[1:]):
            if word not in self.vocabulary:
                return 0
            offset += len(self.counts[k])
            key = (node << 32) | self.vocabulary[word]
            i = int(np.searchsorted(self.keys[k], key))
            if i == len(self.keys[k]) or self.keys[k][i] != key:
                return 0
            node = offset + i
        return int(self.counts[len(ngram) - 1][node - offset])

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of what was counted; the order of images and captions does not matter."""
        digest = hashlib.sha256(f"{self.n_images},{self.n}".encode())
        digest.update("\n".join(self.vocabulary).encode())
        for array in (*self.keys, *self.counts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz; the final name appears only when the file is whole."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = "\n".join(self.vocabulary).encode()
        arrays: dict[str, Any] = {f"keys{k + 2}": keys for k, keys in enumerate(self.keys)}
        arrays |= {f"counts{k + 1}": counts for k, counts in enumerate(self.counts)}
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                np.savez_compressed(
                    file,
                    format=_FORMAT,
                    n_images=self.n_images,
                    n=self.n,
                    name=self.name,
                    words=np.frombuffer(words, np.uint8),
                    **arrays,
                )
                file.close()
                os.chmod(file.name, 0o644)  # temporary files are private by default
                os.replace(file.name, path)
            except BaseException:
                pathlib.Path(file.name).unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequency:
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, or not such a file.
        """
        if not os.path.exists(path):
            raise UserError(
                f"no document frequencies at {os.fspath(path)}; "
                "`python -m har_jax.prepare` writes them beside a dataset"
            )
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["format"]) != _FORMAT:
                    raise UserError(
                        f"{os.fspath(path)} has format {int(file['format'])}, this version reads "
                        f"{_FORMAT}; prepare the dataset again"
                    )
                n = int(file["n"])
                return cls(
                    file["words"].tobytes().decode().split("\n"),
                    [file[f"keys{k}"] for k in range(2, n + 1)],
                    [file[f"counts{k}"] for k in range(1, n + 1)],
                    n_images=int(file["n_images"]),
                    name=str(file["name"]),
                )
        except (KeyError, OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{os.fspath(path)} is not a document-frequency file ({error}); "
                "prepare the dataset again"
            ) from error


class CiderD:
    """CIDEr-D against fixed references, which are cooked once. Read-only and thread-safe.

    Args:
      df: document frequencies; n is theirs.
      references: words of each caption of each image.
      eos: append `EOS_WORD` to the references, and to the candidates that ended.
      sigma: width of the length penalty, in words.

    Raises:
      UserError: no images, or an image without references.
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
        for image_id, captions in references.items():
            if not captions:
                raise UserError(f"image {image_id} has no references; CIDEr-D needs at least one")
        self.df = df
        self.eos = eos
        self.sigma = float(sigma)
        self._row = {int(image_id): row for row, image_id in enumerate(references)}
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
        # Words outside df get ids after its own: its nodes of levels >= 2 move by that many.
        added = len(self._vocabulary) - len(df.vocabulary)
        known = [_shift_parents(keys, len(df.vocabulary), added) for keys in df.keys]
        found, moved = ngrams.intern(flat, starts, n_words=len(self._vocabulary), n=n, known=known)
        counts = np.zeros(sum(map(len, found.keys)), np.int64)
        moved[0] = moved[0][: len(df.vocabulary)]
        for nodes, count in zip(moved, df.counts, strict=True):
            counts[nodes] = count
        self._log_n = math.log(df.n_images)
        idf = self._log_n - np.log(np.maximum(1, counts))
        self._table = ngrams.hash_table(found.keys, idf)

        lengths = np.diff(starts)
        self._ref_lengths = lengths
        group = np.concatenate([c * n + k for k, c in enumerate(found.captions)])
        occurrences = ngrams.pack(group, self._table.row_of[np.concatenate(found.levels)])
        distinct, repeats = sorted_counts(occurrences)
        group, row = ngrams.unpack(distinct)
        squares = np.bincount(
            group, (repeats * self._table.values[row]) ** 2, minlength=len(lengths) * n
        )
        self._ref_norms = np.sqrt(squares).reshape(len(lengths), n)
        self._image_nodes = self._by_image(group, row, repeats)

    def _by_image(
        self,
        group: Int64[np.ndarray, " m"],
        row: Int32[np.ndarray, " m"],
        repeats: Int64[np.ndarray, " m"],
    ) -> tuple[np.ndarray, ...]:
        """What the kernel merges a candidate with: one sorted list of n-grams per (image, level),
        and for each of its n-grams the references that hold it, and how often."""
        n, n_images = self.df.n, len(self._image_refs) - 1
        ref, level = np.divmod(group, n)
        image = np.repeat(np.arange(n_images), np.diff(self._image_refs))[ref]
        keys = ngrams.pack(image * n + level, row)
        order = np.argsort(keys, kind="stable")
        keys, refs = sorted_counts(keys)
        list_of, nodes = ngrams.unpack(keys)
        own = (ref - self._image_refs[image])[order]  # counted from the image's first one
        return (
            nodes,
            np.searchsorted(list_of, np.arange(n_images * n + 1)),
            np.concatenate([[0], np.cumsum(refs)]).astype(
                np.int32 if len(row) < 2**31 else np.int64
            ),
            own.astype(np.int32),
            repeats[order].astype(np.int32),
        )

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
          UserError: an image without references, or lengths that do not fit together.
        """
        if len(image_ids) != len(captions):
            raise UserError(
                f"got {len(image_ids)} image ids for captions of {len(captions)} images"
            )
        width = len(captions[0]) if len(captions) else 0
        rows = []
        for image_id, group in zip(image_ids, captions, strict=True):
            if len(group) != width:
                raise UserError(
                    f"image {image_id} has {len(group)} captions, the first image has {width}; "
                    "every image of a batch needs as many"
                )
            row = self._row.get(int(image_id))
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
        scores = self._score_flat(
            self._ids(words), np.asarray(starts, np.int64), np.asarray(rows, np.int64)
        )
        return scores.reshape(len(captions), width)

    def _ids(self, words: Words) -> Int32[np.ndarray, " words"]:
        """Word ids; words outside the vocabulary get the next ids after it, for this call only."""
        known = map(self._vocabulary.get, words, itertools.repeat(-1))
        ids = np.fromiter(known, np.int32, len(words))
        unknown: dict[str, int] = {}
        for place in np.flatnonzero(ids < 0).tolist():
            ids[place] = unknown.setdefault(words[place], len(self._vocabulary) + len(unknown))
        return ids

    def _score_flat(
        self,
        flat: Int32[np.ndarray, " words"],
        starts: Int64[np.ndarray, " captions_plus_1"],
        rows: Int64[np.ndarray, " captions"],
    ) -> Float64[np.ndarray, " captions"]:
        out = np.empty(len(rows), np.float64)
        kernel()(
            flat,
            starts,
            rows,
            self._table.keys,
            self._table.values,
            self._table.shift,
            len(self._vocabulary),
            self._log_n,
            self._image_refs,
            *self._image_nodes,
            self._ref_norms,
            self._ref_lengths,
            self.sigma,
            out,
        )
        return out


def _shift_parents(
    keys: Int64[np.ndarray, " nodes"], n_words: int, added: int
) -> Int64[np.ndarray, " nodes"]:
    """Renumbers the parents of a level after `added` words were appended to `n_words`."""
    parent, word = ngrams.unpack(keys)
    return ngrams.pack(np.where(parent < n_words, parent, parent + added), word)
