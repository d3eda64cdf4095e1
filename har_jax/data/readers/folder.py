"""Anyone's own data: a directory of images, and their captions in CSV or JSON lines.

    image,caption                one row per caption; an image may have several
    {"image": "a.jpg", "caption": "..."}            or "captions": [...]

Columns go by their usual names (`file_name` and `text` of Hugging Face's imagefolder among them).
The split is a column, or the first folder of the name (`train/a.jpg`), or drawn by a hash of the
name. Ids are a column, or made from the name.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Entry, Problems, Reading, usable
from har_jax.data.readers.shares import Shares, check_whole, image_ids_of
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import read_text

IMAGE = ("image", "file_name", "filename", "file", "path", "image_path", "image_name", "img")
CAPTION = ("caption", "captions", "text", "comment", "sentence", "description")
SPLIT = ("split",)
ID = ("image_id", "cocoid")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WHAT = "a CSV or JSONL file with an image and a caption in each row"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the image and the caption; "" for the usual ones."""

    image: str = ""
    caption: str = ""


@dataclasses.dataclass
class _Row:
    """One row: where it stands, which image, its captions; split and id where it has them."""

    where: str
    name: str
    captions: list[Any]
    split: str | None
    image_id: Any


def read_folder(
    folder: PathLike,
    captions: Sequence[PathLike] = (),
    *,
    shares: Shares,
    columns: Columns = Columns(),
    split: str | None = None,
    problems: Problems,
) -> Reading:
    """The images of captions files, and those of the folder that no file mentions as dropped.

    Args:
      folder: of the images; names are relative to it.
      captions: the files; none: metadata.csv or metadata.jsonl in the folder and its splits.
      shares: how images of no split are divided.
      split: the one split that all of them make.

    Raises:
      UserError: a file that is not there, is cut off, lacks a column, or contradicts itself.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"--images={root}: there is no such directory")
    files = [pathlib.Path(path) for path in captions] or _metadata(root)
    rows: list[_Row] = []
    notes: tuple[str, ...] = ()
    for path in files:
        text = read_text(path, _WHAT)
        notes += check_whole(path, text)
        # Hugging Face's metadata lies beside its images, also in a folder of the split.
        beside = "" if captions else path.parent.relative_to(root).as_posix()
        prefix = "" if beside in ("", ".") else beside + "/"
        lines = _json_lines if path.suffix in (".jsonl", ".ndjson") else _csv_rows
        rows += [_row(where, value, columns, prefix) for where, value in lines(path, text, columns)]
    if not rows:
        raise UserError(f"{', '.join(map(str, files))}: no captions; give {_WHAT}")
    if split is not None and (shares.given or any(row.split for row in rows)):
        raise UserError(
            f"--split={split} makes one split of all images, but "
            + ("--val or --test" if shares.given else "the file's column `split`")
            + " divides them; leave one out"
        )
    own_ids = all(row.image_id is not None for row in rows)
    entries = list(_entries(rows, shares, split, own_ids))
    mentioned = {os.path.normpath(row.name) for row in rows}
    for name in _image_files(root):
        if name not in mentioned:
            problems.add("images without captions", name)
    return Reading(list(usable(entries, problems)), "", notes)


def _metadata(root: pathlib.Path) -> list[pathlib.Path]:
    names = ("metadata.csv", "metadata.jsonl")
    places = [root, *(root / name for name in _SPLITS)]
    found = [place / name for place in places for name in names if (place / name).is_file()]
    if not found:
        raise UserError(
            f"{root} holds no metadata.csv or metadata.jsonl; name the file with --captions=FILE"
        )
    return found


def _image_files(root: pathlib.Path) -> Iterator[str]:
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                yield os.path.normpath(os.path.relpath(os.path.join(place, name), root))


def _json_lines(path: pathlib.Path, text: str, _: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # other line breaks may be in a caption
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            told = f"{where} is not valid JSON ({error.msg})"
            raise UserError(f"{told}; is the file cut off? Give {_WHAT}") from None
        if not isinstance(value, dict):
            raise UserError(f"{where} holds {line[:40]!r}, not an object; give {_WHAT}")
        yield where, value


def _csv_rows(
    path: pathlib.Path, text: str, columns: Columns
) -> Iterator[tuple[str, dict[str, Any]]]:
    first = text.split("\n", 1)[0].strip("\r")
    delimiter = max(",;\t|", key=lambda mark: (_looks_like_header(first, mark, columns), -1))
    if not _looks_like_header(first, delimiter, columns):
        delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    header: list[str] | None = None
    try:
        for values in reader:
            if not values:
                continue
            where = f"{path} line {reader.line_num}"
            if header is None:
                header = [value.strip() for value in values]
                if not _looks_like_header(first, delimiter, columns):
                    if len(values) != 2 or not values[0].lower().endswith(SUFFIXES):
                        raise UserError(
                            f"{path} has no header that names an image and a caption column; its "
                            f"first line is {first[:80]!r}. Begin it with image,caption, or give "
                            "--image-column and --caption-column"
                        )
                    header = ["image", "caption"]
                    yield where, dict(zip(header, values, strict=True))
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{where} has {len(values)} columns, the header {len(header)} "
                    f"({', '.join(header)}); quote captions that hold {delimiter!r}; is the file "
                    "cut off?"
                )
            yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num}: {error}; is the file cut off within a quoted caption?"
        ) from None


def _looks_like_header(line: str, delimiter: str, columns: Columns) -> bool:
    names = {part.strip().strip('"').lower() for part in line.split(delimiter)}
    images = {columns.image.lower()} if columns.image else set(IMAGE)
    captions = {columns.caption.lower()} if columns.caption else set(CAPTION)
    return bool(names & images) and bool(names & captions)


def _row(where: str, value: Mapping[str, Any], columns: Columns, prefix: str) -> _Row:
    fields = {str(key).strip().lower(): item for key, item in value.items()}

    def find(names: Sequence[str], what: str) -> Any:
        for name in names:
            if name.lower() in fields:
                return fields[name.lower()]
        if not what:
            return None
        raise UserError(
            f"{where} has no {what}{did_you_mean(names[0], fields)}; it has {', '.join(fields)}; "
            f"expected one of {', '.join(names)}, or name it with --{what}-column"
        )

    name = find((columns.image,) if columns.image else IMAGE, "image")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: the image is {name!r}; it must be the name of a file")
    captions = find((columns.caption,) if columns.caption else CAPTION, "caption")
    split, image_id = find(SPLIT, ""), find(ID, "")
    if split is not None and not isinstance(split, str):
        raise UserError(f"{where}: the split is {split!r}; it must be a name such as train")
    captions = captions if isinstance(captions, list) else [captions]
    split = (split or "").strip() or None
    return _Row(where, prefix + name.strip(), captions, split, None if image_id == "" else image_id)


def _entries(
    rows: Sequence[_Row], shares: Shares, split: str | None, own_ids: bool
) -> Iterator[Entry]:
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    homes: dict[int, str] = {}
    made = {} if own_ids else image_ids_of(by_name)
    number = 1
    for name, those in by_name.items():
        for row in those[1:]:
            for what in ("split", "image_id"):
                if getattr(row, what) != getattr(those[0], what):
                    raise UserError(
                        f"{row.where}: {what} of {name} is {getattr(row, what)!r}, but "
                        f"{getattr(those[0], what)!r} in {those[0].where}"
                    )
        image_id = _own_id(those[0]) if own_ids else made[name]
        if (other := homes.setdefault(image_id, name)) != name:
            raise UserError(
                f"{those[0].where}: {name} has the id {image_id} of {other}; ids must be unique"
            )
        captions = [caption for row in those for caption in row.captions]
        own = split or _split_of(those[0], shares)
        yield Entry(own, image_id, (name,), tuple(enumerate(captions, number)), filename=name)
        number += len(captions)


def _own_id(row: _Row) -> int:
    try:
        return int(str(row.image_id))
    except ValueError:
        raise UserError(
            f"{row.where}: the id is {row.image_id!r}; it must be a whole number (or leave the "
            "column out: ids are then made from the names)"
        ) from None


def _split_of(row: _Row, shares: Shares) -> str:
    folder = row.name.replace("\\", "/").removeprefix("./").split("/")[0].lower()
    named = row.split or (folder if folder in _SPLITS and "/" in row.name else None)
    if named is None:
        return shares.split_of(row.name)
    if shares.given:
        what = f"{row.where} names the split {named!r}, but --val and --test draw splits"
        raise UserError(f"{what}; leave them out")
    return _SPLITS.get(named.lower(), named)
