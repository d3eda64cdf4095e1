"""Whether captions name the shapes that were drawn: the generator knows, so no reference is asked.

A share over words, unlike CIDEr, tells an encoder that takes a moon for a star from one that does
not. Shape words are the nouns of `lexicon.NOUNS`, in the singular or plural, outside the phrases
that mean a pattern or a place ("with squares", "under the stars").
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping

from har_jax.data.dataset import read_card
from har_jax.errors import UserError
from har_jax.miniature import scenes
from har_jax.miniature.scenes import lexicon
from har_jax.miniature.scenes.world import Scene


@dataclasses.dataclass(frozen=True)
class Truth:
    """Counts over captions, and the shares that they make (0 of none).

    Attributes:
      captions: of them `naming` have a shape word, and in `true_captions` each one is true.
      words: shape words; `true_words` name the shape of a thing in the scene.
      pairs: shape words right behind a colour word; `true_pairs` are a thing's shape and colour.
    """

    captions: int = 0
    naming: int = 0
    true_captions: int = 0
    words: int = 0
    true_words: int = 0
    pairs: int = 0
    true_pairs: int = 0

    def __add__(self, other: Truth) -> Truth:
        sums = (a + b for a, b in zip(*map(dataclasses.astuple, (self, other)), strict=True))
        return Truth(*sums)

    def to_dict(self) -> dict[str, float]:
        """The shares: of captions that name a shape, of those the true, of words, of pairs."""
        return {
            "captions": self.captions,
            "naming": _share(self.naming, self.captions),
            "captions_true": _share(self.true_captions, self.naming),
            "words_true": _share(self.true_words, self.words),
            "pairs_true": _share(self.true_pairs, self.pairs),
        }


def shapes_named(
    dataset_dir: str | os.PathLike[str], captions: Mapping[int, str], split: str = "test"
) -> Truth:
    """How true the shape words of captions are, by image id, of the scenes of a split.

    Only the dataset's card is read: the scenes are sampled again.

    Raises:
      UserError: a dataset of other images than scenes, no such split, or ids that it lacks.
    """
    settings = scenes.Settings.from_card(read_card(dataset_dir))
    if settings is None:
        raise UserError(f"{dataset_dir} holds no scenes; only of these is it known what they show")
    if split not in settings.sizes:
        known = ", ".join(settings.sizes)
        raise UserError(f"{dataset_dir} has no split {split!r}; the splits are {known}")
    drawn = {i: scene for name, i, scene, _ in scenes.sampled(settings) if name == split}
    unknown = sorted(captions.keys() - drawn.keys())
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(captions)} captions are of images that split {split!r} of "
            f"{dataset_dir} lacks, such as {unknown[0]}"
        )
    return sum((truth_of(text, drawn[i]) for i, text in captions.items()), Truth())


def truth_of(caption: str, scene: Scene) -> Truth:
    """What one caption says of one scene."""
    shapes = {thing.shape for thing in scene.things}
    pairs = {thing.pair for thing in scene.things}
    named = list(shape_words(caption))
    right = [shape in shapes for _, shape in named]
    coloured = [pair in pairs for pair in named if pair[0]]
    return Truth(
        captions=1,
        naming=bool(named),
        true_captions=bool(named) and all(right),
        words=len(named),
        true_words=sum(right),
        pairs=len(coloured),
        true_pairs=sum(coloured),
    )


def shape_words(caption: str) -> Iterator[tuple[str | None, str]]:
    """Yields (colour, shape) of each shape word; colour is None where no colour word precedes."""
    text = " ".join(re.findall(r"[a-z]+", caption.lower()))
    for found in _WORDS.finditer(text):
        if found["noun"]:
            colour = found["colour"]
            yield colour and _COLOURS[colour], _SHAPES[found["noun"]]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _any_of(phrases: Iterator[str] | Mapping[str, str]) -> str:
    """A pattern of whole words; of two that begin alike the longer is tried first."""
    return "|".join(sorted(phrases, key=lambda phrase: (-len(phrase), phrase)))


_SHAPES = {
    form: shape
    for shape, nouns in lexicon.NOUNS.items()
    for noun in nouns
    for form in (noun, _plural(noun))
}
_COLOURS = {word: colour for colour, words in lexicon.COLOURS.items() for word in words}
# Phrases of other slots that spell a noun; what they match is passed over.
_OTHERS = [
    phrase
    for phrase in (
        *(f"with {mark}" for mark in lexicon.MARKS.values()),
        *(place for places in lexicon.PLACES.values() for place in places),
        *(view for views in lexicon.VIEWS.values() for view in views),
    )
    if any(re.search(rf"\b{noun}\b", phrase) for noun in _SHAPES)
]
_WORDS = re.compile(
    rf"\b(?:(?:{_any_of(iter(_OTHERS))})|"
    rf"(?:(?P<colour>{_any_of(_COLOURS)}) )?(?P<noun>{_any_of(_SHAPES)}))\b"
)
