"""Penalties that look at one caption at a time, and what such rewards share.

A penalty is positive, and 0 where nothing is wrong: give it a negative weight.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from har_jax.errors import UserError
from har_jax.metrics import health
from har_jax.text import ptb


def words_of(text: str) -> list[str]:
    """PTB words, split at any white space as pycocoevalcap's scorers do ("1 1/2" is one token)."""
    words = ptb.words(text)
    return " ".join(words).split() if "\xa0" in text else words


def check_references(references: Mapping[int, Sequence[str]]) -> None:
    """Raises `UserError` where there are none, or an image has none."""
    if not references:
        raise UserError("a reward needs references of at least one image, got none")
    for image_id, captions in references.items():
        if not captions or isinstance(captions, str):
            raise UserError(
                f"image {image_id} has references {captions!r}; give a list of at least one text"
            )


def references_of(references: Mapping[int, Sequence[str]], image_id: int) -> Sequence[str]:
    """The references of an image.

    Raises:
      UserError: there are none.
    """
    found = references.get(image_id)
    if not found:
        raise UserError(
            f"no references for image {image_id} (there are references of {len(references)} "
            "images); score images of the split the reward was built from"
        )
    return found


class RepetitionPenalty:
    """Share of a caption's bigrams, in [0, 1], that stood in it before."""

    signature = "repetition[n2]+ptb"

    def __call__(
        self,
        image_ids: Int64[np.ndarray, " B"],
        captions: Sequence[Sequence[str]],
        ended: Bool[np.ndarray, "B R"],
    ) -> Float32[np.ndarray, "B R"]:
        """See `contract.Reward`."""
        values = [health.repetition_rate([words_of(text)]) for group in captions for text in group]
        return np.array(values, np.float32).reshape(ended.shape)


class LengthPenalty:
    """How many words a caption is shorter than the shortest or longer than the longest reference,
    as a share of the references' mean length; 0 in between.

    Args:
      references: raw captions of every image that will be scored; read when first needed.

    Raises:
      UserError: an image without references.
    """

    signature = "length[range]+ptb"

    def __init__(self, references: Mapping[int, Sequence[str]]):
        check_references(references)
        self._references = references
        # Three numbers per image: all of them may stay.
        self._range = functools.lru_cache(None)(self._measure)

    def _measure(self, image_id: int) -> tuple[int, int, float]:
        lengths = [len(words_of(text)) for text in references_of(self._references, image_id)]
        return min(lengths), max(lengths), max(1.0, sum(lengths) / len(lengths))

    def _value(self, image_id: int, text: str) -> float:
        shortest, longest, mean = self._range(image_id)
        n = len(words_of(text))
        return max(0, shortest - n, n - longest) / mean

    def __call__(
        self,
        image_ids: Int64[np.ndarray, " B"],
        captions: Sequence[Sequence[str]],
        ended: Bool[np.ndarray, "B R"],
    ) -> Float32[np.ndarray, "B R"]:
        """See `contract.Reward`.

        Raises:
          UserError: an image without references.
        """
        values = [
            self._value(int(image_id), text)
            for image_id, group in zip(image_ids, captions, strict=True)
            for text in group
        ]
        return np.array(values, np.float32).reshape(ended.shape)
