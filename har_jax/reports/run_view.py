"""What a report is made of: a run directory, its evaluations and images, as far as they exist.

Whoever wrote them: what is not of the kind that the pages show is left out where it is read, since
a report of a broken run is what one needs then.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Optional, TypedDict

import msgspec
import numpy as np
from PIL import Image

from har_jax.checkpoint_files import METRIC, finished_steps
from har_jax.data.decode import decode
from har_jax.errors import UserError
from har_jax.evaluation.score import PER_IMAGE, PREDICTIONS, SCORES
from har_jax.files import read_json_lines
from har_jax.foreign import Finite, Size, read_json, shortened, typed
from har_jax.metrics.corpus import score_captions
from har_jax.text.words import named_in

Series = dict[str, list[tuple[float, float]]]

_SIDE = 360  # pixels of an embedded image's longer side
_AS_IT_IS = 48_000  # bytes up to which a small image is embedded without encoding it again
_LARGEST = 1e100  # of a figure that is drawn
_OF_A_RUN = ("run.json", "metrics.jsonl", "samples.jsonl", "eval")  # others have a config.json too
_SIGNATURES = {"PNG": b"\x89PNG\r\n", "JPEG": b"\xff\xd8\xff"}


class _Parent(TypedDict, total=False):
    run: str
    path: str


class _Source(TypedDict, total=False):
    data: str


class _Weights(TypedDict, total=False):
    path: str
    fingerprint: str


class _Counts(TypedDict, total=False):
    total: Size
    trained: Size


class _Data(TypedDict, total=False):
    dir: str
    val_split: str


# What is asked of the kinds of values; others are only printed.
_SCORES: dict[str, Any] = {
    "n_images": Size,
    "warnings": list[str],
    "skipped": dict[str, str],
    "source": _Source,
    "control": dict[str, Any],
}
_ROW: dict[str, Any] = {
    "image_id": int,
    "caption": str,
    "references": list[str],
    "CIDEr": Optional[Finite],  # noqa: UP045  (of an Annotated there is no |)
    "filename": str,
}
_RUN: dict[str, Any] = {
    "parent": _Parent | None,
    "base": dict[str, _Weights],
    "parameters": _Counts,
    "versions": dict[str, Any],
    "config": str,
}
_CONFIG: dict[str, Any] = {"steps": Size, "data": _Data}


class Sample(msgspec.Struct):
    """A line of `samples.jsonl`."""

    step: Size
    caption: str
    image_id: int | str = 0
    references: list[str] = []
    split: str = ""


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
    """An evaluation directory. A row has `caption`, and where known `references` and `CIDEr`."""

    scores: dict[str, Any]
    rows: dict[int, dict[str, Any]]


class Best(NamedTuple):
    """The step that "best" means, with its figures of validation by name ("CIDEr", "loss")."""

    step: int
    figures: dict[str, float]


@dataclasses.dataclass(frozen=True)
class RunView:
    """`saved` are the steps of the checkpoints, each with its validation CIDEr, if it has one."""

    path: pathlib.Path
    config: dict[str, Any]  # {} where a file is missing, as below
    info: dict[str, Any]
    series: Series
    samples: list[Sample]
    events: list[dict[str, Any]]  # what guards did, with "step"
    splits: dict[str, ScoredSplit]
    saved: dict[int, float | None] = dataclasses.field(default_factory=dict)

    @property
    def stage(self) -> str:
        return str(self.info.get("stage") or self.config.get("stage") or "run")

    @property
    def reached(self) -> int:
        """The last step that anything tells of."""
        logged = (points[-1][0] for points in self.series.values() if points)
        return int(max([*logged, *self.saved], default=0))

    @property
    def best(self) -> Best | None:
        """The checkpoint of the highest CIDEr, as evaluation takes it; of a run whose checkpoints
        are elsewhere, the step that was validated best. None where none was validated."""
        known = {step: value for step, value in self.saved.items() if value is not None}
        known = known or {int(x): y for x, y in self.series.get(f"val/{METRIC}", [])}
        if not known:
            return None
        value, step = max((value, step) for step, value in known.items())
        of_step = {
            name.removeprefix("val/"): dict(points)[step]
            for name, points in self.series.items()
            if name.startswith("val/") and step in dict(points)
        }
        return Best(step, {METRIC: value, **of_step})

    def setting(self, key: str, default: Any = None) -> Any:
        """`config["optim"]["lr"]` for "optim.lr"."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a directory has any of what only runs have."""
    return any(os.path.exists(os.path.join(path, name)) for name in _OF_A_RUN)


def read_view(run_dir: str | os.PathLike[str]) -> RunView:
    """Reads whatever there is.

    Raises:
      UserError: no such directory, or nothing of a run is in it.
    """
    path = pathlib.Path(run_dir)
    if not os.path.isdir(path):  # which never raises
        raise UserError(
            f"there is no run directory {shortened(str(path))!r} to report on; give the --workdir "
            "of har_jax.train"
        )
    if not is_run(path):
        raise UserError(
            f"{shortened(str(path))!r} is no run directory (it has none of "
            f"{', '.join(_OF_A_RUN)}); give the --workdir of har_jax.train"
        )
    found = {place.name: _scored(place) for place in sorted((path / "eval").glob("*"))}
    rows = _lines(path / "metrics.jsonl")
    samples = [row for row in _lines(path / "samples.jsonl") if _fits(row, Sample)]
    return RunView(
        path,
        _object(path / "config.json", _CONFIG),
        _object(path / "run.json", _RUN),
        series_of(rows),
        [typed(row, Sample, "") for row in samples],
        [{"step": r["step"], **r["event"]} for r in rows if isinstance(r.get("event"), dict)],
        {name: split for name, split in found.items() if split is not None},
        _saved(path),
    )


def _saved(path: pathlib.Path) -> dict[int, float | None]:
    try:
        return finished_steps(path)
    except (UserError, OSError):
        return {}


def _fits(value: Any, kind: Any) -> bool:
    try:
        typed(value, kind, "")
    except ValueError:  # of another kind, or with half a character in a name
        return False
    return True


def _fitting(found: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What is of the kind that `kinds` ask for, or that they do not name."""
    return {k: value for k, value in found.items() if k not in kinds or _fits(value, kinds[k])}


def _object(path: pathlib.Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    value = _load(path)
    return _fitting(value, kinds) if isinstance(value, dict) else {}


def _load(path: pathlib.Path) -> Any:
    try:
        return read_json(path, "a file of a run", halves=True)
    except UserError:
        return None


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return read_json_lines(path)
    except OSError:
        return []


def _scored(directory: pathlib.Path) -> ScoredSplit | None:
    scores = _object(directory / SCORES, _SCORES)
    listed = _load(directory / PER_IMAGE) or _load(directory / PREDICTIONS)
    objects = (row for row in listed if isinstance(row, dict)) if isinstance(listed, list) else ()
    rows = {r["image_id"]: r for o in objects if "image_id" in (r := _fitting(o, _ROW))}
    return ScoredSplit(scores, rows) if scores or rows else None


def series_of(rows: Sequence[Mapping[str, Any]]) -> Series:
    """Lines of `metrics.jsonl` to {name: [(step, value), ...]} by step; what is no number that
    could be drawn is left out."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "time") or not isinstance(value, int | float):
                continue
            if -_LARGEST < value < _LARGEST and 0 <= row["step"] < 2**53:  # neither is NaN
                found.setdefault(name, {})[row["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in found.items()}


def common_split(runs: Sequence[RunView]) -> str | None:
    """The split to show: one that all runs were evaluated on if there is; test before others."""
    if not runs:
        return None
    own = set(runs[0].splits)
    for choice in (own.intersection(*(run.splits for run in runs)), own):
        if choice:
            return "test" if "test" in choice else sorted(choice)[0]
    return None


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with its captions by column ("MLE", "SCST") and the CIDEr of each, where known."""

    image_id: int
    references: list[str]
    captions: dict[str, tuple[str, float | None]]
    filename: str = ""

    @property
    def gain(self) -> float:
        """CIDEr of the last column, less that of the first if there are two."""
        values = [value or 0.0 for _, value in self.captions.values()]
        return values[-1] - values[0] if len(values) > 1 else values[0]

    @property
    def scored(self) -> bool:
        return all(value is not None for _, value in self.captions.values())


def examples_of(
    columns: Mapping[str, ScoredSplit], references: Mapping[int, Sequence[str]]
) -> list[Example]:
    """The images that every column captioned, in the order of the last one.

    `references` fill in for rows that have none; CIDEr is computed where it is missing.
    """
    values = {name: _cider(split, references) for name, split in columns.items()}
    *others, last = columns.values()
    found = []
    for image_id, row in last.rows.items():
        if not all(image_id in other.rows for other in others):
            continue
        captions = {
            name: (split.rows[image_id].get("caption", ""), values[name].get(image_id))
            for name, split in columns.items()
        }
        texts = row.get("references") or references.get(image_id, [])
        found.append(Example(image_id, list(texts), captions, str(row.get("filename", ""))))
    return found


def _cider(split: ScoredSplit, references: Mapping[int, Sequence[str]]) -> dict[int, float]:
    rows = split.rows
    if rows and all("CIDEr" in row for row in rows.values()):
        return {i: row["CIDEr"] for i, row in rows.items() if row["CIDEr"] is not None}
    truth = {i: row.get("references") or references.get(i) for i, row in rows.items()}
    if not truth or not all(truth.values()):
        return {}
    captions = {i: str(row.get("caption") or "") for i, row in rows.items()}
    known = {i: list(texts or []) for i, texts in truth.items()}
    try:
        words = named_in(str(split.scores.get("signature", "")))
        found = score_captions(known, captions, metrics=("CIDEr",), words=words)
    except UserError:
        return {}
    return {i: scores["CIDEr"] for i, scores in found.per_image.items()}


def choose_examples(examples: Sequence[Example], n: int, seed: int = 0) -> dict[str, list[int]]:
    """Up to n image ids of each group: most and least gained, and at random."""
    chosen = {}
    if all(example.scored for example in examples):
        ordered = sorted(examples, key=lambda e: -e.gain)
        chosen["gain"] = [e.image_id for e in ordered[:n]]
        chosen["loss"] = [e.image_id for e in ordered[::-1][:n]]
    some = np.random.default_rng(seed).permutation(len(examples))[:n]
    chosen["random"] = [examples[i].image_id for i in sorted(some.tolist())]
    return chosen


class DatasetImages:
    """Images and references of a prepared dataset; empty, with a reason, if it cannot be opened."""

    def __init__(self, directory: str, split: str):
        self.reason = ""
        self._split: Any = None
        self._index: dict[int, int] = {}
        try:
            from har_jax.data.dataset import open_split

            found = open_split(directory, split)
            self._index = {k: i for i, k in enumerate(found.ids)}
            self._split = found
        except (UserError, OSError, ImportError) as error:
            self.reason = str(error)

    def references(self, image_ids: Collection[int]) -> dict[int, list[str]]:
        if self._split is None:
            return {}
        found = self._split.references()
        return {i: found[i] for i in image_ids if i in found}

    def data_uri(self, image_id: int | str) -> str | None:
        if not isinstance(image_id, int) or image_id not in self._index:
            return None
        try:
            return data_uri(self._split[self._index[image_id]].image)
        except UserError:  # a damaged record
            return None


def data_uri(image: bytes, side: int = _SIDE) -> str | None:
    """An encoded image as a data URI of at most `side` pixels; None if it does not decode."""
    kind = next((k for k, start in _SIGNATURES.items() if image.startswith(start)), None)
    try:
        picture = decode(image)
    except UserError:
        return None
    if kind and len(image) <= _AS_IT_IS and max(picture.size) <= side:
        return _uri(kind, image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84)
    return _uri("JPEG", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
