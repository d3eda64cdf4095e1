"""COCO captions JSON, Karpathy's and nocaps' to entries.

Two formats are read, told apart by what is in them:

    COCO       {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
               one split per file (captions_train2017.json)
    Karpathy   {"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}
               all splits in one file (dataset_coco.json, Karpathy & Fei-Fei, arXiv 1412.2306)

Image ids are COCO's in both, so that splits made from either can be compared. Ids of captions only
tell the same caption listed twice: some tools count them anew for each image.
"""

from __future__ import annotations

import collections
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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
from har_jax.errors import UserError
from har_jax.foreign import is_unicode, read_json, shortened
from har_jax.ids import Id, NoId, is_plain, read_id

T = TypeVar("T")

RESTVAL = ("train", "keep", "drop")
_DOMAINS = ("in-domain", "near-domain", "out-domain")
FORMATS = "COCO captions JSON or Karpathy's dataset_coco.json"


def read_files(
    paths: Sequence[PathLike],
    *,
    splits: Sequence[str] | None = None,
    restval: str = "train",
    default_split: str = "train",
    problems: Problems,
) -> Reading:
    """The images of some annotation files, each with its usable captions.

    Args:
      splits: that each COCO file makes; None: `default_split` (Karpathy's files name their own).
      restval: what becomes of Karpathy's "restval": "train", "keep" or "drop".
      problems: receives what is dropped.

    Raises:
      UserError: no such file, not JSON, cut off, of neither format, hardly a usable row, or not of
        one id space.
    """
    if splits is not None and len(splits) != len(paths):
        raise UserError(
            f"got {len(paths)} captions files but {len(splits)} splits; give one for each"
        )
    if restval not in RESTVAL:
        raise UserError(f"restval is {restval!r}; allowed are {', '.join(RESTVAL)}")
    entries: list[Entry] = []
    spaces: dict[str, PathLike] = {}
    for number, path in enumerate(paths):
        split = splits[number] if splits else None
        found, space = read_file(path, split, restval, default_split, problems)
        entries += found
        spaces.setdefault(space, path)
    if len(spaces) > 1:
        raise UserError(
            "the captions files are of different datasets, whose ids mean different images: "
            + ", ".join(f"{path} ({space or 'no dataset known'})" for space, path in spaces.items())
            + "; prepare each by itself"
        )
    return Reading(numbered(entries), next(iter(spaces)))


def read_file(
    path: PathLike,
    split: str | None = None,
    restval: str = "keep",
    default_split: str = "",
    problems: Problems | None = None,
    *,
    what: str = FORMATS,
) -> tuple[list[Entry], str]:
    """(entries, id space) of one file, without their numbers; see `read_files`.

    Without `problems` nothing is dropped, a malformed row is an error, and no more is looked at
    than ids and captions: what is evaluated with other people's references is what these people
    would evaluate with. `what` the file should be is for errors.
    """
    data = read_json(path, what, halves=problems is not None)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} has no list `images`; got {_shape(data)}, give {what}")
    listed = [image for image in images if isinstance(image, dict)]
    if isinstance(data.get("annotations"), list):
        entries = _coco(path, images, data["annotations"], split or default_split, problems)
        space = "coco"
    elif any("sentences" in image for image in listed):
        if split is not None:
            raise UserError(
                f"--split={split} does not go with {path}, which names the split of each image"
            )
        entries = _karpathy(path, images, restval, problems)
        # Flickr's files of the same format have no COCO ids.
        own = data.get("dataset", "")
        space = "coco" if any("cocoid" in i for i in listed) else own if _is_name(own) else ""
    else:
        raise UserError(
            f"{path} has a list `images`, but neither `annotations` (COCO) nor `sentences` in each "
            f"image (Karpathy); got {_shape(data)}, give {what}"
        )
    if any(isinstance(entry.written, str) for entry in entries):
        space = ""  # COCO's ids are numbers
    return list(entries if problems is None else usable(entries, problems)), space


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) is not None


def _shape(data: Any) -> str:
    if isinstance(data, dict):
        return shortened(f"an object with the keys {sorted(data)[:8]!a}", 200)
    if isinstance(data, list) and any(isinstance(row, dict) and "image" in row for row in data[:9]):
        return "a list of images with captions (`prepare folder` reads it)"
    return f"a {type(data).__name__}"


def _coco(
    path: PathLike,
    images: Sequence[Any],
    annotations: Sequence[Any],
    split: str,
    problems: Problems | None,
) -> list[Entry]:
    captions: dict[Id, list[tuple[int | None, Any]]] = {}
    listed: list[tuple[Id, tuple[str, ...], str, Id | None]] = []

    def take_image(_: int, image: Any) -> None:
        written = _id(image, "id")
        source = _id(image, "source_id") if "source_id" in image else None
        name = _name(image, "file_name", problems is None)
        domain = image.get("domain")
        domain = domain if isinstance(domain, str) else ""
        listed.append((written, (name,) if name else (), domain, source))
        captions.setdefault(written, [])

    def take_annotation(_: int, annotation: Any) -> None:
        written, text = _id(annotation, "image_id"), _field(annotation, "caption")
        keep(written, _caption_id(annotation, "id"), text)

    def keep(written: Id, number: int | None, text: Any) -> None:
        if written not in captions and problems is not None:
            problems.add("captions of images that are not listed", f"image {shown_id(written)}")
            return
        captions.setdefault(written, []).append((number, text))

    _each(path, "image", images, take_image, problems)
    known = len(captions)
    plain = _plain_rows(annotations)
    for row in plain:
        keep(*row)
    if not plain:
        _each(path, "annotation", annotations, take_annotation, problems)
    listed += [(written, (), "", None) for written in list(captions)[known:]]
    return [
        Entry(split, written, names, tuple(captions[written]), domain=domain, source=source)
        for written, names, domain, source in listed
    ]


def _plain_rows(annotations: Sequence[Any]) -> list[tuple[int, int, str]]:
    """(image, id of the caption, caption) of annotations that are all as COCO has them, looked at
    together; [] where one is not, and each has to be looked at."""
    try:
        rows = [(row["image_id"], row["id"], row["caption"]) for row in annotations]
    except (KeyError, TypeError, IndexError):
        return []
    numbers = [number for image, caption, _ in rows for number in (image, caption)]
    if {type(text) for *_, text in rows} != {str} or set(map(type, numbers)) != {int}:
        return []
    return rows if is_plain(min(numbers)) and is_plain(max(numbers)) else []


def _karpathy(
    path: PathLike, images: Sequence[Any], restval: str, problems: Problems | None
) -> list[Entry]:
    entries: list[Entry] = []

    def take(number: int, image: Any) -> None:
        split = _field(image, "split", str)
        if problems is not None and not re.fullmatch(SPLIT_NAME, split):
            raise Malformed(f"the split is {split!r:.60}; splits have names of lower-case letters")
        if split == "restval":
            if restval == "drop":
                return
            split = "train" if restval == "train" else split
        # Flickr's files of the same format have no COCO ids.
        key = next((key for key in ("cocoid", "imgid") if key in image), "")
        written = _id(image, key) if key else number
        name = _name(image, "filename", problems is None)
        folder = image.get("filepath")
        names = (name,) if name else ()
        if name and folder and isinstance(folder, str) and is_unicode(folder):
            names = (name, f"{folder}/{name}")
        captions: list[tuple[int | None, Any]] = []

        def take_sentence(_: int, sentence: Any) -> None:
            captions.append((_caption_id(sentence, "sentid"), _field(sentence, "raw")))

        sentences = _field(image, "sentences", list)
        where = f"image {number}, sentence"
        _each(path, where, sentences, take_sentence, problems, "sentence", whole=False)
        entries.append(Entry(split, written, names, tuple(captions)))

    _each(path, "image", images, take, problems)
    return entries


def _each(
    path: PathLike,
    where: str,
    rows: Sequence[Any],
    take: Callable[[int, Any], None],
    problems: Problems | None,
    kind: str = "",
    *,
    whole: bool = True,
) -> None:
    """`take(number, row)` of each; what is malformed is dropped, or named where nothing may be.

    Args:
      whole: these are all rows of a file, which is refused where hardly one is usable.
    """
    first, bad = "", 0
    for number, row in enumerate(rows):
        try:
            take(number, row)
        except (Malformed, NoId) as error:
            told = f"{where} {number} {error}"
            if problems is None:
                raise UserError(f"{path} is not a captions file: {told}; give {FORMATS}") from None
            problems.add(f"malformed {kind or where}s", told)
            first, bad = first or told, bad + 1
    if whole and bad:
        refuse_useless(f"{path} is not a captions file", len(rows) - bad, len(rows), first, FORMATS)


def _field(row: Any, key: str, kind: Any = object) -> Any:
    """A value of a row.

    Raises:
      Malformed: the row is no object, has no such key, or a value of another kind.
    """
    if not isinstance(row, dict):
        raise Malformed(f"has trouble: it is no object but {reprlib.repr(row)}")
    if key not in row:
        raise Malformed(f"has no {key!r}")
    if not isinstance(row[key], kind):
        raise Malformed(f"has trouble: {key} is {reprlib.repr(row[key])}")
    return row[key]


def _id(row: Any, key: str) -> Id:
    if type(row) is dict and is_plain(number := row.get(key)):
        return number
    try:
        return read_id(_field(row, key))
    except NoId as error:
        raise Malformed(f"has trouble: {key}: {error}") from None


def _name(row: Any, key: str, optional: bool) -> str:
    """A file's name; only who looks for the files needs it, so that it may be `optional`."""
    if optional and not isinstance(row.get(key), str):
        return ""
    name = _field(row, key, str)
    if not name or not is_unicode(name):
        raise Malformed(f"has trouble: {key} is {name!r:.60}")
    return name


def _caption_id(row: Any, key: str) -> int | None:
    """The id of a caption; None where it has none that records can hold."""
    try:
        found = _id(row, key)
    except Malformed:
        return None
    return found if isinstance(found, int) and found < 2**63 else None


def read_nocaps(path: PathLike, *, split: str = "val", problems: Problems) -> Reading:
    """nocaps' validation set (Agrawal et al., arXiv 1812.08658): COCO's format, and of each image
    the `domain` that it belongs to, its objects being all of COCO's classes, some, or none.

    Raises:
      UserError: see `read_files`; or images of no domain.
    """
    reading = read_files([path], splits=[split], problems=problems)
    unknown = [entry for entry in reading.entries if entry.domain not in _DOMAINS]
    if 2 * len(unknown) >= max(1, len(reading.entries)):
        seen = collections.Counter(entry.domain or "none" for entry in unknown)
        raise UserError(
            f"{path} is not nocaps' captions file: {len(unknown)} of {len(reading.entries)} images "
            f"have no domain of {', '.join(_DOMAINS)} (such as image "
            f"{shown_id(unknown[0].written)}: {next(iter(seen))!r:.40}); for other files in COCO's "
            "format use `prepare coco`"
        )
    for entry in unknown:
        problems.add("images of no domain", entry)
    known = [entry for entry in reading.entries if entry.domain in _DOMAINS]
    return Reading(known, "nocaps" if reading.ids else "")
