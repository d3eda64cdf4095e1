"""Rewards that look at one caption at a time: what they share, and three penalties.

A penalty is positive, and 0 where nothing is wrong: give it a negative weight.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from har_jax.errors import UserError
from har_jax.ids import read_number
from har_jax.metrics import gender, health
from har_jax.metrics.word_lists import refuse_text
from har_jax.rewards.contract import Ended, ImageIds, Texts, Values, check_captions
from har_jax.text.words import PTB, Words


class References:
    """Raw captions by image id, of every image that will be scored; read when first needed, as the
    words of `words`.

    Raises:
      UserError: there are none, or an image has none.
    """

    def __init__(self, texts: Mapping[int, Sequence[str]], words: Words = PTB):
        if not texts:
            raise UserError("a reward needs references of at least one image, got none")
        for image_id, captions in texts.items():
            if not captions or isinstance(captions, str):
                fix = "give a list of at least one text"
                raise UserError(f"image {image_id} has references {captions!r}; {fix}")
        self._texts, self._words = texts, words

    def words(self, image_id: int) -> list[list[str]]:
        """The words of an image's references.

        Raises:
          UserError: the image has none.
        """
        found = self._texts.get(image_id)
        if not found:
            raise UserError(
                f"no references for image {image_id} (there are references of {len(self._texts)} "
                "images); score images of the split the reward was built from"
            )
        return [self._words(text) for text in found]


class PerCaption:
    """A `contract.Reward` made of figures of single captions, as `words` divides them."""

    def __init__(self, words: Words = PTB):
        self._words = words

    def figures(self, image_id: int, words: Sequence[str]) -> float | Sequence[float]:
        """Of one caption: its value, or what `values` makes one of."""
        raise NotImplementedError

    def values(self, figures: np.ndarray) -> np.ndarray:
        """[n], from the figures [n, ...] of all captions."""
        return figures

    def __call__(self, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values:
        """See `contract.Reward`.

        Raises:
          UserError: an image without references, or a text for a list of captions.
        """
        check_captions(captions)
        numbers = [read_number(image_id) for image_id in image_ids]
        figures = [
            self.figures(image_id, self._words(text))
            for image_id, group in zip(numbers, captions, strict=True)
            for text in group
        ]
        if not figures:
            return np.zeros(ended.shape, np.float32)
        return self.values(np.array(figures)).reshape(ended.shape).astype(np.float32)


class RepetitionPenalty(PerCaption):
    """Share of a caption's bigrams, in [0, 1], that stood in it before."""

    @property
    def signature(self) -> str:
        return f"repetition[n2]+{self._words.mark}"

    def figures(self, image_id: int, words: Sequence[str]) -> float:
        del image_id
        return health.repetition_rate([words])


class LengthPenalty(PerCaption):
    """How many words a caption is shorter than the shortest or longer than the longest reference,
    as a share of the references' mean length; 0 in between.

    Args:
      references: raw captions, see `References`.

    Raises:
      UserError: an image without references.
    """

    def __init__(self, references: Mapping[int, Sequence[str]], *, words: Words = PTB):
        super().__init__(words)
        self._references = References(references, words)
        self.signature = f"length[range]+{words.mark}"
        # Three numbers per image: all of them may stay.
        self._range = functools.lru_cache(None)(self._measure)

    def _measure(self, image_id: int) -> tuple[int, int, float]:
        lengths = [len(words) for words in self._references.words(image_id)]
        return min(lengths), max(lengths), max(1.0, sum(lengths) / len(lengths))

    def figures(self, image_id: int, words: Sequence[str]) -> float:
        refuse_text(words)
        shortest, longest, mean = self._range(image_id)
        return max(0, shortest - len(words), len(words) - longest) / mean


class BiasPenalty(PerCaption):
    """b in {0, 1/2, 1}: 1 for a gendered word that contradicts the references, 1/2 for one that
    they do not support (see `metrics.gender`): `cider_d - 1.0*bias`.

    Args:
      references: raw captions, see `References`.
      lists: "lic" (as published) or "balanced" (every word has a counterpart).

    Raises:
      UserError: unknown lists, or an image without references.
    """

    def __init__(
        self, references: Mapping[int, Sequence[str]], *, lists: str = "lic", words: Words = PTB
    ):
        super().__init__(words)
        gender.word_lists(lists)
        self._lists = lists
        # Two numbers per image: all of them may stay.
        of_image = References(references, words).words
        self._support = functools.cache(lambda image_id: gender.support(of_image(image_id), lists))
        self.signature = f"bias[{lists}]+{words.mark}"

    def figures(self, image_id: int, words: Sequence[str]) -> float:
        supported = self._support(image_id)
        return gender.unsupported(gender.mentions(words, self._lists), supported)
