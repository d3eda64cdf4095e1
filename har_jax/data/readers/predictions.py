"""One caption per image, as captioners write it, in any of these forms:

    [{"image_id": 1, "caption": "..."}, ...]      COCO results, as one list or as JSON lines
    {"image": "a.jpg", "caption": "..."}          the same with names of files (`caption --out`)
    image,caption                                 a table, with image_id, image or both
    {"a.jpg": "...", "b.jpg": ["..."]}            one object: an image's id or file, its caption

Nothing is dropped: what a file says of an image cannot be read, so the file is refused.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Mapping
from typing import Any

from har_jax.data.readers.folder import CAPTION, ID, IMAGE, SUFFIXES
from har_jax.data.readers.rows import json_values, table_rows
from har_jax.errors import UserError
from har_jax.foreign import parse_json, read_text
from har_jax.ids import MISSING, Id, number_in
from har_jax.metrics.corpus import RESULT_KEYS, predictions_from_results

RESULTS = (
    'COCO results, a list of {"image_id": ..., "caption": ...}; the same as JSON lines or CSV; or '
    "one JSON object {image: caption}"
)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Captions by the id that the file has of an image, or by its file's name where it has none.

    Attributes:
      names: of the images' files, where the file has them.
    """

    captions: dict[Id, str]
    names: dict[Id, str]

    def number(self, written: Id, numbers: Mapping[Id, int]) -> int | None:
        """The number of an image in a dataset that knows its images by `numbers`; None of one that
        is not there. The file's name comes first: a number may be one of somebody's own; last
        comes the number that the file is named by."""
        name = self.names.get(written, written)
        for key in (name, written):
            if key in numbers:
                return numbers[key]
        if not isinstance(name, str):
            return None
        found = numbers.get(posixpath.basename(name))
        number = number_in(name)
        return numbers.get(number) if found is None and number is not None else found


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Reads any of the forms above.

    Raises:
      UserError: none of them, empty, an entry without image or caption, or an image twice.
    """
    text, where = read_text(path, RESULTS), repr(str(path))
    start = text.lstrip()[:1]
    found = _values(where, text) if start in ("{", "[") else _table(where, text)
    if not found:
        raise UserError(f"{where} holds no predictions; give {RESULTS}")
    if len(found) == 1 and start != "[" and not _is_row(found[0]):
        found = _of_mapping(where, found[0])
    rows = [_with_id(row) for row in found]
    names: dict[Id, str] = {}
    try:
        captions = predictions_from_results(rows)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for written, row in zip(captions, rows, strict=True):
        if row.keys() == RESULT_KEYS:
            continue
        if isinstance(name := _first(row, IMAGE), str) and name.strip():
            names[written] = posixpath.normpath(name.strip())
    return Predictions(captions, names)


def _values(where: str, text: str) -> list[Any]:
    """Of a JSON array, of JSON lines, or of one object."""
    found = [value for _, value in json_values(where, text, RESULTS, halves=False)]
    if broken := next((value for value in found if isinstance(value, UserError)), None):
        if not text.lstrip().startswith("{"):
            raise broken
        try:  # one object over many lines, perhaps
            parse_json(text, where, RESULTS)
        except UserError:
            raise broken from None
        found = [parse_json(text, where, RESULTS, once=True)]
    return found


def _table(where: str, text: str) -> list[Any]:
    images = {*IMAGE, *ID}

    def refuse(place: str, why: str) -> None:
        raise UserError(f"{place} {why}")

    def is_header(names: set[str]) -> bool:
        return bool(names & images) and bool(names & {*CAPTION})

    known = {*images, *CAPTION}
    rows = table_rows(where, text, is_header, known, SUFFIXES, refuse)
    return [{key.lower(): cell for key, cell in row.items()} for _, row in rows]


def _is_row(value: Any) -> bool:
    """Whether an object is one of an image, and not one of all images."""
    known = (*ID, *IMAGE)
    return isinstance(value, dict) and "caption" in value and any(key in value for key in known)


def _of_mapping(where: str, value: Any) -> list[Any]:
    if isinstance(value, dict) and value:
        texts = {k: t[0] if isinstance(t, list) and len(t) == 1 else t for k, t in value.items()}
        if all(isinstance(text, str) for text in texts.values()):
            return [
                {"image_id": key, "caption": text} | ({"image": key} if "." in key else {})
                for key, text in texts.items()
            ]
    raise UserError(f"{where} holds a {type(value).__name__}, not a list; give {RESULTS}")


def _with_id(row: Any) -> Any:
    """A row as COCO's results have it; what is none stays as it is, to be told."""
    if not isinstance(row, dict):
        return row
    if row.keys() >= RESULT_KEYS and row["image_id"] != "":
        return row
    written = _first(row, ID)
    if written is None or (isinstance(written, str) and written in MISSING):
        written = _first(row, IMAGE)
    caption = _first(row, CAPTION)
    caption = caption[0] if isinstance(caption, list) and len(caption) == 1 else caption
    found = {"image_id": written, "caption": caption}
    return row | {key: value for key, value in found.items() if value is not None}


def _first(row: Any, names: tuple[str, ...]) -> Any:
    """The value of the first of these keys that says something; None without one."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)
