"""References and predictions from the files that other tools write.

References come as COCO captions JSON or as Karpathy's `dataset_coco.json` (`data.readers.coco`), in
rows of image (or its id) and caption, as `prepare folder` takes them (`data.readers.folder`), or as
one JSON object, {image: [captions]}; predictions as `data.readers.predictions` says. Nothing is
dropped from either: what a file says of an image cannot be read, so the file is refused.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import posixpath
import re
import reprlib
from collections.abc import Mapping

from har_jax import ids
from har_jax.data.dataset import Split, captions_path
from har_jax.data.entries import Entry
from har_jax.data.readers import coco, folder
from har_jax.data.readers.predictions import Predictions
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import is_unicode, read_json, shortened
from har_jax.ids import Id, NoId, number_in, read_id, stem_of

FORMATS = (
    "COCO's or Karpathy's JSON; rows of image and caption as CSV, JSON or JSON lines; one JSON "
    "object {image: [captions]}; or a prepared dataset, DIR or DIR:SPLIT"
)
_LONGEST_ROW = 1 << 16  # characters; COCO's files are single lines of megabytes
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:')
_OF_COCO = ("images", "annotations", "info", "licenses", "type", "categories", "dataset")
"""The keys that COCO's and Karpathy's files begin with."""


@dataclasses.dataclass(frozen=True)
class References:
    """Captions by the number of the image (`ids.numbered`), and the images' file names and
    (nocaps') domains where it has them.

    Attributes:
      ids: the number of an image by the id that it has in the file.
      sources: by the id that it had before `prepare`, where that was another.
      files: the images' files as the file names them, with their numbers.
    """

    captions: dict[int, list[str]]
    filenames: dict[int, str]
    name: str
    domains: dict[int, str] = dataclasses.field(default_factory=dict)
    ids: dict[Id, int] = dataclasses.field(default_factory=dict)
    sources: dict[Id, int] = dataclasses.field(default_factory=dict)
    files: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def numbers(self) -> dict[Id, int]:
        """The number of an image by each id that predictions may have of it: the one that it has
        in the file, the one that it had before `prepare`, and its file's name, also without
        suffix, where that is of one image alone."""
        named = [(name, number) for file, number in self.files for name in _names(file)]
        times = collections.Counter(name for name, _ in named)
        once = {name: number for name, number in named if times[name] == 1}
        return {**once, **self.sources, **self.ids}


def read_references(path: str | os.PathLike[str], split: str = "test") -> References:
    """Reads any of the formats; `split` chooses in Karpathy's file ("train" includes its restval),
    and in rows that name their split.

    Raises:
      UserError: none of the formats, an unknown split, or a caption that is no text.
    """
    entries = _entries(path)
    name = os.path.basename(os.fspath(path))
    present = {entry.split for entry in entries} - {""}  # COCO's files name none
    if present:
        wanted = {"train", "restval"} if split == "train" else {split}
        if not wanted & present:
            known = shortened(", ".join(sorted(present)), 200)
            raise UserError(
                f"--split={split:.60}: {str(path)!r} has no such split"
                f"{did_you_mean(split[:60], present)}; it has {known}"
            )
        entries = [entry for entry in entries if entry.split in wanted]
        name = f"{name}:{split}"
    numbers = ids.numbered(entry.written for entry in entries)
    captions: dict[int, list[str]] = {}
    for entry in entries:
        texts = [text for _, text in entry.captions]
        for text in texts:
            if not isinstance(text, str) or not (text.isascii() or is_unicode(text)):
                what = f"{entry} has the caption {reprlib.repr(text)}, which is no text"
                raise UserError(f"{str(path)!r}: {what}")
        if texts:
            captions.setdefault(numbers[entry.written], []).extend(texts)
    if not captions:
        raise UserError(f"{str(path)!r} holds no captions; give {FORMATS}")
    at = [numbers[entry.written] for entry in entries]
    both = list(zip(at, entries, strict=True))
    return References(
        captions,
        {number: entry.names[-1] for number, entry in both if entry.names},
        name,
        {number: entry.domain for number, entry in both if entry.domain},
        numbers,
        {entry.source: number for number, entry in both if entry.source is not None},
        [(entry.filename, number) for number, entry in both],
    )


def _entries(path: str | os.PathLike[str]) -> list[Entry]:
    """The images of a file of any format, which its beginning tells."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            start = file.read(_LONGEST_ROW)
    except (OSError, ValueError):
        start = ""  # told by whoever reads it
    first = start.lstrip().split("\n", 1)[0].strip()
    if first and not first.startswith("{"):
        return folder.read_rows(path, FORMATS)
    with contextlib.suppress(ValueError, RecursionError):  # of one object over many lines
        if json.loads(first).keys() & {*folder.IMAGE, *folder.ID}:
            return folder.read_rows(path, FORMATS)
    key = _FIRST_KEY.match(start)
    if key is not None and key[1] not in _OF_COCO:
        return _of_object(path)
    return coco.read_file(path, what=FORMATS)[0]


def _of_object(path: str | os.PathLike[str]) -> list[Entry]:
    """Of {image: [captions]}, its file's name or its id."""
    value = read_json(path, FORMATS, once=True)
    if "images" in value:
        return coco.read_file(path, what=FORMATS)[0]
    found: dict[Id, Entry] = {}
    for key, texts in value.items():
        listed = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, list) or not listed:
            raise UserError(
                f"{str(path)!r}: {shortened(ascii(key), 60)} has {reprlib.repr(texts)} where its "
                f"captions should be; give {FORMATS}"
            )
        try:
            written = read_id(key)
        except NoId as error:
            raise UserError(f"{str(path)!r}: {error}; give {FORMATS}") from None
        file = (key,) if isinstance(written, str) else ()
        if written in found:
            raise UserError(f"{str(path)!r} has {shortened(ascii(written), 60)} twice")
        found[written] = Entry("", written, file, tuple((None, text) for text in listed), *file)
    return list(found.values())


def _names(filename: str) -> set[Id]:
    """What predictions may call a file: its name, without folder or suffix, or its number."""
    name, number = posixpath.basename(filename), number_in(filename)
    return {filename, name, stem_of(name)} | ({number} if number is not None else set())


def numbers_of(split: Split) -> dict[Id, int]:
    """`References.numbers` of a dataset's split; {} where it keeps no captions by themselves."""
    path = captions_path(split.directory, split.name)
    return read_references(path).numbers if path.is_file() else {}


def by_number(references: References, predictions: Predictions) -> dict[int, Id]:
    """{number of an image: its id as predictions have it}, in their order.

    Raises:
      UserError: an image that has no references, or one under two ids.
    """
    found: dict[int, Id] = {}
    unknown: list[Id] = []
    for image in predictions.captions:
        number = None if predictions.names else references.ids.get(image)
        if number is None:  # which takes the names of the files
            number = predictions.number(image, references.numbers)
        if number is None or number not in references.captions:
            unknown.append(image)
        elif (other := found.setdefault(number, image)) != image:
            raise UserError(
                f"{shortened(ascii(other), 60)} and {shortened(ascii(image), 60)} are one image of "
                f"{references.name}; the metrics take one caption per image"
            )
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(predictions.captions)} predictions are for images that "
            f"{references.name} has no references of, such as image "
            f"{shortened(ascii(unknown[0]), 60)}; give the references (and --split) that belong to "
            "the predictions"
        )
    return found


def restrict(
    references: References, predicted: Mapping[int, object]
) -> tuple[dict[int, list[str]], str | None]:
    """The references of the predicted images, as pycocoevalcap takes them, and a warning if some
    images have none predicted (a CIDEr over fewer images has other document frequencies)."""
    kept = {i: texts for i, texts in references.captions.items() if i in predicted}
    missing = len(references.captions) - len(kept)
    if not missing:
        return kept, None
    return kept, (
        f"only {len(kept)} of the {len(references.captions)} images of {references.name} have a "
        "prediction; the scores are over these alone"
    )
