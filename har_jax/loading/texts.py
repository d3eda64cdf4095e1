"""Texts and a captioner's tokens: what it wrote with its log-probabilities, and the texts of others
whose log-probability is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from har_jax.errors import UserError
from har_jax.foreign import shortened
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.types import Int


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption that was written, with what its writer thinks of it.

    Attributes:
      text: without EOS.
      tokens: its ids, EOS included where it was written; nothing that follows.
      logp: of each token, in nats, under the distribution that it was chosen from: of samples with
        the temperature, top_k and top_p that they were drawn with.
      score: what captions of an image are ranked by: the sum of `logp`, which beam search divides
        by length**length_penalty.
      ended: whether it came to EOS, or was cut at `max_tokens`.
    """

    text: str
    tokens: tuple[int, ...]
    logp: tuple[float, ...]
    score: float
    ended: bool


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts to be scored: of each image its own, or for all images the same.

    Attributes:
      rows: R texts of each image; where `shared`, of one image only, and those of all.
    """

    rows: list[list[str]]
    shared: bool

    @classmethod
    def of(cls, texts: Any) -> Texts:
        """One text or a list of texts, for every image; or a list with a list for each image.

        Raises:
          UserError: anything else, none at all, or images with unequal numbers of texts.
        """
        if isinstance(texts, str):
            return cls([[texts]], True)
        rows = _listed(texts, "texts")
        if rows and all(isinstance(row, str) for row in rows):
            return cls([rows], True)
        if any(isinstance(row, str) for row in rows):
            raise UserError(
                "texts has both texts and lists of texts; give a list of texts, which is for all "
                "images, or a list with a list of texts for each image"
            )
        rows = [_listed(row, f"texts[{i}]") for i, row in enumerate(rows)]
        for i, row in enumerate(rows):
            for j, text in enumerate(row):
                if not isinstance(text, str):
                    raise UserError(f"texts[{i}][{j}] is {_shown(text)}; it must be a text")
            if len(row) != len(rows[0]) or not row:
                raise UserError(
                    f"texts[{i}] has {len(row)} texts, texts[0] has {len(rows[0])}; give each "
                    "image as many, at least one"
                )
        if not rows:
            raise UserError("texts is empty; give at least one")
        return cls(rows, False)

    def encoded(
        self, tokenizer: CaptionTokenizer, max_tokens: int, *, shortest: bool = False
    ) -> tuple[Int[np.ndarray, "B R T"], Int[np.ndarray, "B R"]]:
        """`encode` of them; where they are shared, B is 1."""
        flat = [text for row in self.rows for text in row]
        tokens, lengths = encode(tokenizer, flat, max_tokens, shortest=shortest)
        shape = (len(self.rows), len(self.rows[0]))
        return tokens.reshape(*shape, -1), lengths.reshape(shape)

    def check_count(self, images: int, *, more: bool = False) -> None:
        """`UserError` unless there is a list of texts for each image; `more`: images may follow."""
        if not self.shared and (len(self.rows) < images or (len(self.rows) > images and not more)):
            raise UserError(
                f"texts has lists for {len(self.rows)} images, but {images}{' or more' * more} "
                "are given; give a list for each image, or one list of texts for all of them"
            )


def encode(
    tokenizer: CaptionTokenizer, texts: list[str], max_tokens: int, *, shortest: bool = False
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
    """Ids of texts, EOS included and again behind it, and their lengths with one EOS.

    Args:
      max_tokens: T. With `shortest`, T is what the longest needs, rounded up to a multiple of 8, so
        that few programs are compiled, and at most `max_tokens`.

    Raises:
      UserError: a text has more than `max_tokens`.
    """
    found = tokenizer.encode_batch(texts)
    lengths = np.array([len(ids) for ids in found], np.int32)
    longest = int(np.argmax(lengths))
    if lengths[longest] > max_tokens:
        raise UserError(
            f"the text {shortened(repr(texts[longest]))} has {lengths[longest]} tokens with EOS, "
            f"but at most {max_tokens} are allowed; shorten it, or give max_tokens="
            f"{lengths[longest]}"
        )
    width = min(max_tokens, -(-int(lengths[longest]) // 8) * 8) if shortest else max_tokens
    tokens = np.full((len(found), width), tokenizer.eos_id, np.int32)
    for row, ids in zip(tokens, found, strict=True):
        row[: len(ids)] = ids
    return tokens, lengths


def _listed(texts: Any, where: str) -> list[Any]:
    unordered = isinstance(texts, str | bytes | Mapping | Set)
    if unordered or not isinstance(texts, Iterable):
        raise UserError(
            f"{where} is {_shown(texts)}; give a text, a list of texts, or a list of "
            "lists with the texts of each image"
        )
    return list(texts)


def _shown(value: Any) -> str:
    return f"{shortened(repr(value))} of type {type(value).__name__}"
