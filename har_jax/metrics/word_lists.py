"""What metrics and rewards count: the words of a caption, as a list.

A text is a sequence of texts too, its letters, and nothing would fail where one is given for a list
of words: BLEU-4 of "a dog runs on the grass" against "a dog is running in the grass" is 0.00, and
0.59 of their letters. So every function that takes words asks one of these first.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from har_jax.errors import UserError

Words = Sequence[str]
"""The words of one caption."""


def refuse_text(words: object) -> None:
    """Raises `UserError` where a text stands for the words of a caption."""
    if isinstance(words, str):
        raise UserError(
            f"the words of a caption are the text {reprlib.repr(words)}, whose letters would be "
            "counted; give a list of words (har_jax.text.words.PTB(text) makes one), or texts to "
            "har_jax.metrics.score_captions"
        )


def refuse_texts(captions: Collection[Words]) -> None:
    """`refuse_text` of each of some captions, and of a text that stands for all of them."""
    refuse_text(captions)
    if any(map(isinstance, captions, itertools.repeat(str))):
        refuse_text(next(words for words in captions if isinstance(words, str)))


def refuse_texts_of_images(
    references: Mapping[int, Sequence[Words]] | Iterable[Sequence[Words]],
) -> None:
    """`refuse_texts` of the captions of each image."""
    of_images = references.values() if isinstance(references, Mapping) else references
    refuse_text(of_images)
    for captions in of_images:
        refuse_texts(captions)


def refuse_text_of_list(texts: object) -> None:
    """Raises `UserError` where one text stands for a list of texts."""
    if isinstance(texts, str):
        raise UserError(
            f"the text {reprlib.repr(texts)} stands for a list of texts, and each of its letters "
            "would be one; give a list, [text] for a single one"
        )
