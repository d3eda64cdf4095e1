"""What is scored beside the metrics of words, where it is asked for: CLIPScore, PAC-S and CHAIR."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from har_jax.errors import UserError, did_you_mean
from har_jax.ids import Id
from har_jax.metrics.corpus import METRICS, OFFICIAL
from har_jax.metrics.embedding_scores import CLIP, PAC, Kind
from har_jax.text.words import PTB, Words

if TYPE_CHECKING:
    from har_jax.scorers.clip import ClipScorer

CHAIR = "CHAIR"
EXTRA_KEYS = (PAC.key, PAC.ref_key, "CHAIRi", "CHAIRs")
"""Of `scores.json`, where they were asked for; CLIPScore's two are always there."""


@dataclasses.dataclass(frozen=True)
class ClipInput:
    """What CLIPScore and PAC-S need beside the captions."""

    scorer: ClipScorer
    images: Callable[[], Iterable[tuple[int, Any]]]  # (image id, image) of each image once


@dataclasses.dataclass(frozen=True)
class Extra:
    """Scores of one kind: of the corpus and of each image, and why there are none."""

    corpus: Mapping[str, float | None]
    per_image: Mapping[int, Mapping[str, Any]]
    signature: str = ""
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)


def split_metrics(metrics: Collection[str]) -> tuple[tuple[str, ...], bool]:
    """(metrics of words, whether CHAIR is among them).

    Raises:
      UserError: an unknown metric.
    """
    allowed = (*METRICS, CHAIR, OFFICIAL)
    for name in metrics:
        if name not in allowed:
            near = did_you_mean(name, allowed)
            raise UserError(f"unknown metric {name!r}; choose from {', '.join(allowed)}{near}")
    return tuple(name for name in metrics if name != CHAIR), CHAIR in metrics


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
      clip, pac: for CLIPScore and PAC-S; `no_clip` says why there is no `clip`.
      chair: whether CHAIR is.
      objects: of each image, for CHAIR, beside those that its references name.
      words: of the captions; CHAIR's are PTB's.
    """

    clip: ClipInput | None
    no_clip: str
    pac: ClipInput | None = None
    chair: bool = False
    objects: Mapping[int, Collection[str]] | None = None
    words: Words = PTB


def extra_scores(
    references: Mapping[int, Sequence[str]], predictions: Mapping[int, str], asked: Asked
) -> Iterator[Extra]:
    """What was asked for; of CLIPScore, why it was not."""
    if asked.clip is None:
        yield Extra({}, {}, skipped=dict.fromkeys((CLIP.key, CLIP.ref_key), asked.no_clip))
    for given, kind in ((asked.clip, CLIP), (asked.pac, PAC)):
        if given is not None:
            yield _by_clip(given, kind, references, predictions)
    if asked.chair and asked.words is not PTB:
        why = f"CHAIR knows English words of PTB, not {asked.words.signature}"
        yield Extra({"CHAIRi": None, "CHAIRs": None}, {}, skipped={CHAIR: why})
    elif asked.chair:
        from har_jax.metrics.hallucination import chair as chair_of

        found = chair_of(predictions, asked.objects, references)
        rows = {i: {key: found.per_image[i][key] for key in _ROW} for i in predictions}
        yield Extra({"CHAIRi": found.chair_i, "CHAIRs": found.chair_s}, rows, found.signature)


_ROW = ("CHAIRi", "CHAIRs", "hallucinated")


def _by_clip(
    given: ClipInput,
    kind: Kind,
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
) -> Extra:
    found = given.scorer.score(given.images(), predictions, references)
    keys = kind.key, kind.ref_key
    rows = {i: dict(zip(keys, pair, strict=True)) for i, pair in found.per_image.items()}
    means = dict(zip(keys, (found.clip_score, found.ref_clip_score), strict=True))
    return Extra(means, rows, given.scorer.signature)


def clip_input(
    directory: str | None, kind: Kind, images: Mapping[int, pathlib.Path]
) -> ClipInput | None:
    """What a score by a CLIP's directory needs; None without a directory or without images."""
    if not directory or not images:
        return None
    from har_jax.scorers.clip import ClipScorer

    return ClipInput(ClipScorer(directory, kind=kind), images.items)


def objects_of(
    path: str, numbers: Mapping[Id, int], predicted: Collection[int]
) -> dict[int, set[str]]:
    """The objects of COCO's instances JSON by the images' numbers.

    Args:
      numbers: `evaluation.references.References.numbers`.

    Raises:
      UserError: see `data.readers.coco_instances`, or the file has not all predicted images.
    """
    from har_jax.data.readers.coco_instances import coco_objects

    found = {numbers[i]: names for i, names in coco_objects(path).items() if i in numbers}
    missing = [number for number in predicted if number not in found]
    if missing:
        raise UserError(
            f"--instances={path}: it lists {len(found)} of the images, and lacks {len(missing)} "
            f"that have predictions, such as image {missing[0]}; give the instances of their split"
        )
    return found
