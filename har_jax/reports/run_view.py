"""What a report is made of: a run directory, its evaluations and images, as far as they exist."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from har_jax.data.images import decode
from har_jax.errors import UserError
from har_jax.evaluation.score import PER_IMAGE, PREDICTIONS, SCORES
from har_jax.files import read_json_lines
from har_jax.foreign import Finite, Size, read_json, typed
from har_jax.metrics.corpus import score_captions

Series = dict[str, list[tuple[float, float]]]

_SIDE = 360  # pixels of an embedded image's longer side
_AS_IT_IS = 48_000  # bytes up to which a small image is embedded without encoding it again
_SIGNATURES = {"PNG": b"\x89PNG\r\n", "JPEG": b"\xff\xd8\xff"}


class _Source(msgspec.Struct):
    data: str | None = None


class _Scores(msgspec.Struct):
    n_images: Size | None = None
    warnings: list[str] = []
    skipped: dict[str, Any] | None = None
    source: _Source | None = None
    control: dict[str, Any] | None = None


class _Row(msgspec.Struct):
    image_id: Size
    caption: str = ""
    references: list[str] | None = None
    CIDEr: Finite | None = None


class _Sample(msgspec.Struct):
    step: Size
    caption: str
    references: list[str] = []
    image_id: Size = 0
    split: str = ""


class _Data(msgspec.Struct):
    dir: str = ""
    val_split: str = ""


class _Config(msgspec.Struct):
    steps: Size | None = None
    data: _Data | None = None


class _Parent(msgspec.Struct):
    run: str | None = None
    path: str | None = None


class _Counts(msgspec.Struct):
    total: Size = 0
    trained: Size = 0


class _Weights(msgspec.Struct):
    fingerprint: str | None = None


class _Info(msgspec.Struct):
    parent: _Parent | None = None
    base: dict[str, _Weights | str | None] | None = None
    parameters: _Counts | None = None
    versions: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
    """An evaluation directory. A row has `caption`, and where known `references` and `CIDEr`."""

    scores: dict[str, Any]
    rows: dict[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class RunView:
    path: pathlib.Path
    config: dict[str, Any]  # {} where a file is missing, as below
    info: dict[str, Any]
    series: Series
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]  # what guards did, with "step"
    splits: dict[str, ScoredSplit]

    @property
    def stage(self) -> str:
        return str(self.info.get("stage") or self.config.get("stage") or "run")

    def setting(self, key: str, default: Any = None) -> Any:
        """`config["optim"]["lr"]` for "optim.lr"."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def read_view(run_dir: str | os.PathLike[str]) -> RunView:
    """Reads whatever there is.

    Raises:
      UserError: no such directory.
    """
    path = pathlib.Path(run_dir)
    if not path.is_dir():
        raise UserError(f"there is no run directory {str(path)!r} to report on")
    found = {place.name: _scored(place) for place in sorted((path / "eval").glob("*"))}
    rows = read_json_lines(path / "metrics.jsonl")
    samples = read_json_lines(path / "samples.jsonl")
    return RunView(
        path,
        _fitting(_load(path / "config.json"), _Config) or {},
        _fitting(_load(path / "run.json"), _Info) or {},
        series_of(rows),
        [row for row in samples if _fitting(row, _Sample)],
        [{"step": r["step"], **r["event"]} for r in rows if isinstance(r.get("event"), dict)],
        {name: split for name, split in found.items() if split is not None},
    )


def _fitting(value: Any, kind: type) -> Any:
    """A value whose parts are of the kinds that a page shows, else None."""
    try:
        typed(value, kind, "")
    except UserError:
        return None
    return value


def _load(path: pathlib.Path) -> Any:
    """A report of a broken run is what one needs then: a file that cannot be read is left out."""
    try:
        return read_json(path, "a file of the run")
    except UserError:
        return None


def _scored(directory: pathlib.Path) -> ScoredSplit | None:
    scores = _fitting(_load(directory / SCORES), _Scores) or {}
    listed = _load(directory / PER_IMAGE) or _load(directory / PREDICTIONS)
    listed = listed if isinstance(listed, list) else []
    rows = {row["image_id"]: row for row in listed if _fitting(row, _Row)}
    return ScoredSplit(scores, rows) if scores or rows else None


def is_number(value: Any) -> bool:
    """Whether something read from a file is a finite number that a float can hold."""
    return isinstance(value, int | float) and abs(value) < 1e300


def series_of(rows: Sequence[Mapping[str, Any]]) -> Series:
    """Lines of `metrics.jsonl` to {name: [(step, value), ...]} by step; nulls are left out."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time") and is_number(value):
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
    values = {name: _cider(split.rows, references) for name, split in columns.items()}
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


def _cider(
    rows: Mapping[int, Mapping[str, Any]], references: Mapping[int, Sequence[str]]
) -> dict[int, float]:
    if all("CIDEr" in row for row in rows.values()):
        return {i: row["CIDEr"] for i, row in rows.items() if row["CIDEr"] is not None}
    truth = {i: row.get("references") or references.get(i) for i, row in rows.items()}
    if not truth or not all(truth.values()):
        return {}
    captions = {i: str(row.get("caption", "")) for i, row in rows.items()}
    known = {i: list(texts or []) for i, texts in truth.items()}
    found = score_captions(known, captions, metrics=("CIDEr",))
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
        try:
            from har_jax.data.dataset import open_split

            self._split = open_split(directory, split)
        except (ValueError, OSError, ImportError) as error:
            self.reason = str(error)
        self._index = {} if self._split is None else {k: i for i, k in enumerate(self._split.ids)}

    def references(self, image_ids: Collection[int]) -> dict[int, list[str]]:
        if self._split is None:
            return {}
        found = self._split.references()
        return {i: found[i] for i in image_ids if i in found}

    def data_uri(self, image_id: int) -> str | None:
        if image_id not in self._index:
            return None
        return data_uri(self._split[self._index[image_id]].image)


def data_uri(image: bytes) -> str | None:
    """An encoded image as a data URI of at most 360 pixels; None if it does not decode."""
    kind = next((k for k, start in _SIGNATURES.items() if image.startswith(start)), None)
    try:
        picture = decode(image)
    except UserError:
        return None
    if kind and len(image) <= _AS_IT_IS and max(picture.size) <= _SIDE:
        return _uri(kind, image)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84)
    return _uri("JPEG", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
