"""Two systems on the same images: whose captions are better, and could it be chance?"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from har_jax.data.readers.predictions import Predictions, read_predictions
from har_jax.errors import UserError
from har_jax.evaluation.bootstrap import LEVEL, METHOD, RESAMPLES, Statistics, paired
from har_jax.foreign import Finite, read_json, read_typed, typed
from har_jax.ids import Id
from har_jax.metrics.corpus import score_captions
from har_jax.text.words import PTB, Words

T = TypeVar("T")

IN_PYTHON = ("CIDEr", "Bleu", "ROUGE_L")
"""Metrics that are computed again here, of part of the captions or of others'."""


@dataclasses.dataclass(frozen=True)
class Other:
    """Another system's captions, and what its evaluation directory knows of CLIPScore."""

    name: str
    predictions: dict[int, str]
    by_clip: dict[int, dict[str, float]]
    signature: str


class _Row(msgspec.Struct):
    """What is read of an image in `per_image.json`."""

    image_id: int | str
    CLIPScore: Finite | None = None
    RefCLIPScore: Finite | None = None


class _Scores(msgspec.Struct):
    """What is read of `scores.json`."""

    signature: str = ""


def read_other(path: str | os.PathLike[str], numbers: Mapping[Id, int] | None = None) -> Other:
    """Reads COCO results, or the directory that `har_jax.evaluate` wrote.

    Args:
      numbers: of the images, by id, where ids are not these numbers themselves.

    Raises:
      UserError: neither of the two.
    """
    name = os.fspath(path)

    def by_number(given: Predictions, values: Mapping[Id, T]) -> dict[int, T]:
        found = ((given.number(i, numbers) if numbers else i, x) for i, x in values.items())
        return {number: value for number, value in found if isinstance(number, int)}

    if not os.path.isdir(name):
        given = read_predictions(name)
        return Other(name, by_number(given, given.captions), {}, "")
    place = pathlib.Path(name)
    if not (place / "predictions.json").is_file():
        raise UserError(
            f"--against={name}: the directory has no predictions.json; give the --out of a "
            "har_jax.evaluate, or a COCO results file"
        )
    by_clip: dict[Id, dict[str, float]] = {}
    signature = ""
    if (place / "scores.json").is_file() and (place / "per_image.json").is_file():
        what = "the files that har_jax.evaluate wrote"
        signature = read_typed(place / "scores.json", _Scores, what).signature
        rows = read_json(place / "per_image.json", what)
        for row in typed(rows, list[_Row], repr(str(place / "per_image.json")), f"give {what}"):
            if row.CLIPScore is not None and row.RefCLIPScore is not None:
                by_clip[row.image_id] = {
                    "CLIPScore": row.CLIPScore,
                    "RefCLIPScore": row.RefCLIPScore,
                }
    given = read_predictions(place / "predictions.json")
    predictions = by_number(given, given.captions)
    return Other(name, predictions, by_number(given, by_clip), signature)


def check_covers(other: Other, image_ids: Sequence[int]) -> None:
    """Raises `UserError` unless the other system captioned every one of these images."""
    missing = [i for i in image_ids if i not in other.predictions]
    if missing:
        raise UserError(
            f"--against={other.name} has no caption of {len(missing)} of the {len(image_ids)} "
            f"images, such as image {missing[0]}; compare systems that captioned the same images"
        )


def compare(
    other: Other,
    statistics: Statistics,
    references: Mapping[int, Sequence[str]],
    image_ids: Sequence[int],
    *,
    signature: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
    words: Words = PTB,
) -> dict[str, Any]:
    """`scores.json["against"]`: the paired bootstrap of every metric that both systems have.

    The other's captions are scored here, against the same references and over the same images.

    Args:
      statistics: of the evaluated system, in the order of `image_ids`.
      signature: its signature; CLIPScore is compared only where both come from the same CLIP.
      words: what the metrics count, of both.

    Raises:
      UserError: the other system did not caption all of these images, or there is only one.
    """
    check_covers(other, image_ids)
    texts = {i: other.predictions[i] for i in image_ids}
    truth = {i: references[i] for i in image_ids}
    scored = score_captions(truth, texts, metrics=IN_PYTHON, words=words)
    rows = [dict(scored.per_image[i]) for i in image_ids]
    if _clip_of(signature) and _clip_of(signature) == _clip_of(other.signature):
        for i, row in zip(image_ids, rows, strict=True):
            row |= other.by_clip.get(i, {})
    theirs = Statistics.of(rows, scored.bleu_counts)
    return {
        "name": other.name,
        "n_images": len(rows),
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "method": f"paired {METHOD}",
        "metrics": paired(statistics, theirs, seed=seed, resamples=resamples),
    }


def _clip_of(signature: str) -> str:
    """The part of a signature that says how CLIPScore was computed; "" without one."""
    _, mark, rest = signature.partition("+CLIPScore[")
    return mark + rest.partition("]")[0]
