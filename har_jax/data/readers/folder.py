"""Anyone's own data: a directory of images, and their captions in a table or in JSON.

    image,caption                one row per caption; an image may have several
    {"image": "a.jpg", "caption": "..."}            or "captions": [...], a line or an entry each

Columns go by their usual names (`file_name` and `text` of Hugging Face's imagefolder among them).
The split is a column, or the first folder of the name (`train/a.jpg`), or drawn by a hash of the
name. Ids are a column (`har_jax.ids` reads them), or made from the name.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from har_jax.data.dataset import PathLike
from har_jax.data.entries import (
    SPLIT_NAME,
    Entry,
    Malformed,
    Problems,
    Reading,
    numbered,
    refuse_useless,
    shown_id,
    usable,
)
from har_jax.data.image_files import ImageFiles
from har_jax.data.readers.rows import Drop, Row, json_rows, table_rows, texts_of
from har_jax.data.readers.shares import Shares, check_whole
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import is_unicode, read_text
from har_jax.ids import MISSING, Id, NoId, read_id

IMAGE = ("image", "file_name", "filename", "file", "path", "image_path", "image_name", "img")
CAPTION = ("caption", "captions", "text", "comment", "sentence", "sentences", "raw", "description")
SPLIT = ("split",)
ID = ("image_id", "cocoid", "img_id")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WHAT = "a CSV or JSON file with an image and a caption in each row"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the image and the caption; "" for the usual ones.

    Attributes:
      ids: an id may stand in the place of the image, whose file nobody needs; such files are read
        by commands that have no options for columns.
    """

    image: str = ""
    caption: str = ""
    ids: bool = False


@dataclasses.dataclass
class _Row:
    """One row: where it stands, which image (its file, or its id), its captions; split and id where
    it has them."""

    where: str
    name: str
    has_file: bool
    captions: list[Any]
    split: str | None
    image_id: Id | None


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
    if not os.path.isdir(folder):
        raise UserError(f"--images={folder}: there is no such directory")
    root = pathlib.Path(folder)
    images = ImageFiles([root])
    files = [pathlib.Path(path) for path in captions] or _metadata(root)
    rows: list[_Row] = []
    notes: tuple[str, ...] = ()
    for path in files:
        text = read_text(path, _WHAT)
        # Hugging Face's metadata lies beside its images, also in a folder of the split.
        beside = "" if captions else path.parent.relative_to(root).as_posix()
        prefix = "" if beside in ("", ".") else beside + "/"
        in_json = text.lstrip()[:1] in ("{", "[")
        notes += () if in_json else check_whole(path, text)
        found, unread = _rows(path, text, columns, prefix, images, problems)
        rows, notes = rows + found, notes + unread
    if not rows:
        raise UserError(f"{', '.join(map(str, files))}: no captions; give {_WHAT}")
    if split is not None and (shares.given or any(row.split for row in rows)):
        raise UserError(
            f"--split={split} makes one split of all images, but "
            + ("--val or --test" if shares.given else "the file's column `split`")
            + " divides them; leave one out"
        )
    entries = list(usable(_entries(rows, lambda row: split or _split_of(row, shares)), problems))
    mentioned = {os.path.normpath(row.name) for row in rows}
    for name in images.walk():
        if name.lower().endswith(SUFFIXES) and os.path.normpath(name) not in mentioned:
            problems.add("images without captions", name)
    return Reading(numbered(entries), "", notes)


def read_rows(path: PathLike, what: str = _WHAT) -> list[Entry]:
    """The images of one captions file by itself, without their numbers; `split` is "" where no
    column names it. Nothing is dropped: what is malformed is an error.

    Args:
      what: the file should be, for errors.

    Raises:
      UserError: it is no such file, or a row is malformed or contradicts another.
    """
    problems, text = Problems(), read_text(path, what)
    rows, _ = _rows(pathlib.Path(path), text, Columns(ids=True), "", ImageFiles([]), problems)
    if problems.counts:
        raise UserError(f"{str(path)!r} has {problems.told()}; give {what}")
    if not rows:
        raise UserError(f"{str(path)!r} holds no captions; give {what}")
    return list(_entries(rows, lambda row: row.split or ""))


def _rows(
    path: pathlib.Path,
    text: str,
    columns: Columns,
    prefix: str,
    images: ImageFiles,
    problems: Problems,
) -> tuple[list[_Row], tuple[str, ...]]:
    """The rows of a file, and notes; what is malformed is dropped."""
    found: list[_Row] = []
    bad: list[str] = []
    beside: collections.Counter[tuple[str, str]] = collections.Counter()

    def drop(where: str, why: str) -> None:
        bad.append(f"{where}: {why}")
        problems.add("malformed rows", bad[-1])

    for where, value in _read(path, text, columns, drop):
        try:
            found.append(_row(where, value, columns, prefix, images))
            if not columns.caption:
                read, *others = _captions_in(value)
                beside.update((read, other) for other in others)
        except (Malformed, NoId) as error:
            drop(where, str(error))
    if bad:
        refuse_useless(path, len(found), len(found) + len(bad), bad[0], _WHAT)
    return found, tuple(
        f"{path}: of {count} rows `{read}` is read and `{other}` is not; --caption-column=NAME "
        "chooses"
        for (read, other), count in beside.items()
    )


def _captions_in(value: Mapping[str, Any]) -> list[str]:
    """The columns of a row that captions may be in: the one that is read, and others that are not
    empty."""
    fields = {str(key).strip().lower(): item for key, item in value.items()}
    known = [name for name in CAPTION if name in fields]
    return [name for name in known if name == known[0] or fields[name]]


def _read(path: pathlib.Path, text: str, columns: Columns, drop: Drop) -> Iterator[Row]:
    if text.lstrip()[:1] in ("{", "["):
        yield from json_rows(path, text, _WHAT, drop)
        return
    names = {columns.image.lower()} if columns.image else {*IMAGE, *(ID if columns.ids else ())}
    texts = {columns.caption.lower()} if columns.caption else set(CAPTION)

    def is_header(found: set[str]) -> bool:
        return bool(found & names) and bool(found & texts)

    known = {*names, *texts, *SPLIT, *ID}
    fix = "" if columns.ids else ", or give --image-column and --caption-column"
    for where, row in table_rows(path, text, is_header, known, SUFFIXES, drop, fix):
        # A table knows texts only: what stands for nothing is one of them.
        yield where, {key: None if cell.strip() in MISSING else cell for key, cell in row.items()}


def _metadata(root: pathlib.Path) -> list[pathlib.Path]:
    names = ("metadata.csv", "metadata.jsonl")
    places = [root, *(root / name for name in _SPLITS)]
    found = [place / name for place in places for name in names if (place / name).is_file()]
    if not found:
        raise UserError(
            f"{root} holds no metadata.csv or metadata.jsonl; name the file with --captions=FILE"
        )
    return found


def _row(
    where: str, value: Mapping[str, Any], columns: Columns, prefix: str, images: ImageFiles
) -> _Row:
    """
    Raises:
      Malformed, NoId: no image, caption, split or id in it that can be one.
    """
    fields = {str(key).strip().lower(): item for key, item in value.items()}
    if len(fields) < len(value):
        raise Malformed(f"has two keys that differ in case alone: {', '.join(value):.100}")

    def find(names: Sequence[str], what: str) -> Any:
        for name in names:
            if name.lower() in fields:
                value = fields[name.lower()]
                return None if value != value else value  # NaN is how pandas tells nothing
        if not what:
            return None
        known = [key[:40] for key in list(fields)[:20]]
        option = "" if columns.ids else f", or name it with --{what}-column"
        raise Malformed(
            f"has no {what}{did_you_mean(names[0], known)}; it has {', '.join(known):.100}; "
            f"expected one of {', '.join(names)}{option}"
        )

    image_id = find(ID, "")
    image_id = None if image_id is None or image_id == "" else read_id(image_id)
    images_named = (columns.image,) if columns.image else IMAGE
    has_file = image_id is None or not columns.ids or any(name in fields for name in images_named)
    name = find(images_named, "image") if has_file else str(image_id)
    if not isinstance(name, str) or not name.strip() or not is_unicode(name):
        raise Malformed(f"the image is {reprlib.repr(name)}; it must be the name of a file")
    captions = find((columns.caption,) if columns.caption else CAPTION, "caption")
    name = name.strip()
    split = find(SPLIT, "")
    if split is not None and not isinstance(split, str):
        raise Malformed(f"the split is {reprlib.repr(split)}; it must be a name such as train")
    if isinstance(captions, str):
        captions = texts_of(captions)
    return _Row(
        where,
        _file_name(images.relative(name) if os.path.isabs(name) else prefix + name),
        has_file,
        captions if isinstance(captions, list) else [captions],
        _usual_split(split or ""),
        image_id,
    )


def _file_name(name: str) -> str:
    """One name for each file: "./a.jpg" and "x//a.jpg" are "a.jpg" and "x/a.jpg"."""
    return name if "://" in name else os.path.normpath(name)


def _usual_split(split: str) -> str | None:
    """The usual name of a split; None without one."""
    name = split.strip()
    name = _SPLITS.get(name.lower(), name)
    if name and not re.fullmatch(SPLIT_NAME, name):
        raise Malformed(f"the split is {reprlib.repr(name)}; its name needs lower-case letters")
    return name or None


def _entries(rows: Sequence[_Row], split_of: Callable[[_Row], str]) -> Iterator[Entry]:
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    homes: dict[Id, str] = {}
    for name, those in by_name.items():
        first = those[0]
        for row in those[1:]:
            for what in ("split", "image_id"):
                own, other = getattr(row, what), getattr(first, what)
                if other is None:
                    setattr(first, what, own)
                elif own not in (None, other):
                    raise UserError(
                        f"{row.where}: {what} of {name!r:.80} is {own!r:.80}, but {other!r:.80} in "
                        f"{first.where}"
                    )
        written = name if first.image_id is None else first.image_id
        if (other := homes.setdefault(written, name)) != name:
            raise UserError(
                f"{first.where}: {name!r:.80} has the id {shown_id(written)} of {other!r:.80}; ids "
                "must be unique"
            )
        captions = tuple((None, caption) for row in those for caption in row.captions)
        file = name if first.has_file else ""
        yield Entry(split_of(first), written, (file,) * bool(file), captions, filename=file)


def _split_of(row: _Row, shares: Shares) -> str:
    folder = row.name.replace("\\", "/").removeprefix("./").split("/")[0].lower()
    named = row.split or (folder if folder in _SPLITS and "/" in row.name else None)
    if named is None:
        return shares.split_of(row.name)
    if shares.given:
        what = f"{row.where} names the split {named!r}, but --val and --test draw splits"
        raise UserError(f"{what}; leave them out")
    return _SPLITS.get(named, named)
