"""Document frequencies of n-grams: in how many images' references each one occurs."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from har_jax.arrays import read_npz
from har_jax.errors import UserError
from har_jax.files import write_bytes
from har_jax.metrics import ngrams
from har_jax.metrics.corpus_ngrams import sorted_counts
from har_jax.metrics.word_lists import Words, refuse_text

log = logging.getLogger(__name__)

EOS_WORD = " "  # a word of its own: no word holds white space
_FORMAT = 1


class DocumentFrequency:
    """In how many images' references each 1..n-gram occurs. Immutable.

    Every reference is counted with `EOS_WORD` at its end, so one table serves scorers with and
    without EOS.

    Attributes:
      n_images: number of images N (not its logarithm).
      n: longest n-gram.
      name: what was counted ("train"), for signatures.
      words_by: the signature of the words that captions were divided into (`text.words`).
      vocabulary: word ids; `EOS_WORD` is 0 and the others are sorted.
    """

    def __init__(
        self,
        words: Sequence[str],
        keys: Sequence[Int64[np.ndarray, " _nodes"]],
        counts: Sequence[Int32[np.ndarray, " _nodes"]],
        *,
        n_images: int,
        name: str,
        words_by: str = "ptb",
    ):
        self.n_images = n_images
        self.words_by = words_by
        self.n = len(counts)
        self.name = name
        self.vocabulary = {word: i for i, word in enumerate(words)}
        self.keys = list(keys)
        self.counts = list(counts)

    @classmethod
    def from_references(
        cls,
        references: Iterable[Iterable[Words]],
        *,
        n: int = 4,
        name: str = "references",
        words_by: str = "ptb",
    ) -> DocumentFrequency:
        """Counts the references: for each image, the words of each of its captions.

        Raises:
          UserError: there is no image, or a text instead of words.
        """
        ids: dict[str, int] = {EOS_WORD: 0}
        images: list[int] = []
        n_images = 0

        def encoded() -> Iterator[list[int]]:
            nonlocal n_images
            for image in references:
                refuse_text(image)
                for caption in image:
                    refuse_text(caption)
                    images.append(n_images)
                    yield [ids.setdefault(word, len(ids)) for word in (*caption, EOS_WORD)]
                n_images += 1

        flat, starts = ngrams.flatten(encoded())
        if n_images == 0:
            raise UserError("document frequencies need at least one image, got none")
        vocabulary = [EOS_WORD, *sorted(word for word in ids if word != EOS_WORD)]
        rank = np.empty(len(ids), np.int32)
        rank[[ids[word] for word in vocabulary]] = np.arange(len(ids), dtype=np.int32)
        flat = rank[flat]
        found, _ = ngrams.intern(flat, starts, n_words=len(ids), n=n)
        image_of = np.asarray(images, np.int64)
        counts, offset = [], 0
        for keys, nodes, caption in zip(found.keys, found.levels, found.captions, strict=True):
            pairs, _ = sorted_counts(ngrams.pack(image_of[caption], nodes - offset))
            _, once_per_image = ngrams.unpack(pairs)
            counts.append(np.bincount(once_per_image, minlength=len(keys)).astype(np.int32))
            offset += len(keys)
        named = {"name": name, "words_by": words_by}
        return cls(vocabulary, found.keys[1:], counts, n_images=n_images, **named)

    def get(self, ngram: Words) -> int:
        """Document frequency of an n-gram; 0 when it was never seen (scorers take max(1, df))."""
        refuse_text(ngram)
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
        words = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        arrays: dict[str, Any] = {"format": _FORMAT, "n_images": self.n_images, "n": self.n}
        arrays |= {"name": self.name, "words": words}
        if self.words_by != "ptb":  # what a file without a word about it holds
            arrays["words_by"] = self.words_by
        arrays |= {f"keys{k + 2}": keys for k, keys in enumerate(self.keys)}
        arrays |= {f"counts{k + 1}": counts for k, counts in enumerate(self.counts)}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequency:
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, or not such a file.
        """
        shown = os.fspath(path)
        if not os.path.exists(path):
            raise UserError(
                f"no document frequencies at {shown}; `python -m har_jax.prepare` writes them "
                "beside a dataset"
            )
        file = read_npz(path, "a document-frequency file", "prepare the dataset again")
        try:
            if (format := int(file["format"])) != _FORMAT:
                raise UserError(
                    f"{shown} has format {format}, this version reads {_FORMAT}; prepare the "
                    "dataset again"
                )
            n, words = int(file["n"]), file["words"].tobytes().decode()
            if "\xa0" in words and "words_by" not in file:
                log.warning(
                    "%s takes '1 1/2' for one word, as older versions did: CIDEr-D of such "
                    "captions is a little off until the dataset is prepared again",
                    shown,
                )
            found = cls(
                words.split("\n"),
                [file[f"keys{k}"] for k in range(2, n + 1)],
                [file[f"counts{k}"] for k in range(1, n + 1)],
                n_images=int(file["n_images"]),
                name=str(file["name"]),
                words_by=str(file.get("words_by", "ptb")),
            )
            found._check()
            return found
        except UserError:
            raise
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{shown} is not a document-frequency file ({error}); prepare the dataset again"
            ) from error

    def _check(self) -> None:
        """Raises ValueError where the arrays are none that `save` writes."""
        kinds = [*((keys, np.int64) for keys in self.keys), *((c, np.int32) for c in self.counts)]
        if not self.counts or any(a.ndim != 1 or a.dtype != kind for a, kind in kinds):
            raise ValueError("arrays of another kind")
        sizes = [len(self.vocabulary), *map(len, self.keys)]
        if sizes != list(map(len, self.counts)) or self.n_images < 1:
            raise ValueError("arrays that do not belong together")
