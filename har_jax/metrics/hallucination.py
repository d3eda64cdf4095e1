"""CHAIR: objects that captions name and images do not have (Rohrbach et al., arXiv 1809.02156).

    CHAIRi = hallucinated mentions of objects / all mentions of objects       over all captions
    CHAIRs = captions with a hallucinated object / captions

Objects are COCO's 80 categories, found in captions by the words of `metrics.coco_words`. An image
has those that it is annotated with and those that its references name; the paper takes both. The
authors' word list is another one: values are to be compared with those of the same signature.

A mention counts each time it stands there. One that may mean two categories ("bike") is
hallucinated where the image has neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from har_jax.errors import UserError, did_you_mean
from har_jax.metrics.coco_words import VERSION, categories, mentions
from har_jax.metrics.on_texts import Predictions, References, aligned, text_of, texts_of
from har_jax.metrics.word_lists import Words, refuse_text_of_list
from har_jax.text.words import PTB

Objects = Sequence[Collection[str]] | Mapping[Any, Collection[str]]


@dataclasses.dataclass(frozen=True)
class ChairScores:
    """What `chair` found.

    Attributes:
      chair_i, chair_s: see the module's docstring, in [0, 1], lower is better; `chair_i` is None
        where no caption names an object.
      per_image: {id: {"CHAIRs": 0 or 1, "CHAIRi" (None without a mention), "objects": what the
        caption names, "hallucinated": the words of those that the image has not}}.
      signature: what has to agree for two values to be comparable.
    """

    chair_i: float | None
    chair_s: float
    per_image: dict[Hashable, dict[str, Any]] = dataclasses.field(repr=False)
    signature: str


def chair(
    predictions: Predictions,
    objects: Objects | None = None,
    references: References | None = None,
) -> ChairScores:
    """CHAIR of one English caption per image.

    Args:
      predictions: texts, as a list or as {id: text}.
      objects: the categories that each image is annotated with, as `har_jax.metrics.coco_objects`
        reads them; likewise a list, or {id: names}. Of images beyond the predictions none is looked
        at.
      references: texts of each image, whose objects count as its own. The paper takes both.

    Raises:
      UserError: neither objects nor references, an image that lacks them, a name that is none of
        COCO's categories, or texts where lists are expected.
    """
    if objects is None and references is None:
        raise UserError(
            "chair needs to know what is in the images: give objects (har_jax.metrics.coco_objects "
            "reads them of COCO's instances_*.json), references, or both"
        )
    given: dict[str, Any] = {"predictions": predictions}
    for name, values in (("objects", objects), ("references", references)):
        if values is not None:
            given[name] = _only(values, predictions)
    columns, images = aligned(**given)
    texts, *_ = columns
    own = {i: PTB(text_of(image, texts[i])) for i, image in enumerate(images)}
    there: list[set[str]] = [set() for _ in images]
    rest = dict(zip(given, columns, strict=True))
    for i, image in enumerate(images):
        if objects is not None:
            there[i] |= _names(image, rest["objects"][i])
        if references is not None:
            for text in texts_of(image, rest["references"][i]):
                there[i] |= named(PTB(text))
    return _scored(images, own, there, "+".join(list(given)[1:]))


def named(caption: Words) -> set[str]:
    """The categories that a caption names; of a word that may mean two, both."""
    return {category for _, found in mentions(caption) for category in found}


def _only(values: Any, predictions: Any) -> Any:
    """Of a mapping, the entries of the predicted images: annotations are of a whole split."""
    if not isinstance(values, Mapping) or not isinstance(predictions, Mapping):
        return values
    from har_jax.ids import read_id

    wanted = {read_id(image) for image in predictions}
    return {image: value for image, value in values.items() if read_id(image) in wanted}


def _names(image: Any, names: Any) -> set[str]:
    refuse_text_of_list(names)
    found = set(names)
    if unknown := found - set(categories()):
        one = min(map(str, unknown))
        raise UserError(
            f"image {image!r:.60} has the object {one!r:.60}, which is none of COCO's 80 "
            f"categories{did_you_mean(one, categories())}"
        )
    return found


def _scored(
    images: list[Any], captions: Mapping[int, Words], there: list[set[str]], source: str
) -> ChairScores:
    per_image: dict[Hashable, dict[str, Any]] = {}
    wrong = total = bad = 0
    for i, image in enumerate(images):
        found = mentions(captions[i])
        absent = [words for words, categories in found if there[i].isdisjoint(categories)]
        wrong, total, bad = wrong + len(absent), total + len(found), bad + bool(absent)
        per_image[image] = {
            "CHAIRs": int(bool(absent)),
            "CHAIRi": len(absent) / len(found) if found else None,
            "objects": [words for words, _ in found],
            "hallucinated": absent,
        }
    signature = f"CHAIR[words=har_jax-{VERSION},objects={source}]"
    return ChairScores(wrong / total if total else None, bad / len(images), per_image, signature)
