"""What a dataset says of itself: TFDS' two JSON files, and the card that `prepare` adds.

Each is read as data, typed, whoever wrote it; nothing that it names is imported. A card lists the
files beside it with their sizes, and the sha256 of all but the records, which have sums of their
own: what is missing or cut off is found when a dataset is opened, and what is flipped when it is
read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from har_jax.errors import UserError
from har_jax.foreign import Size, read_json, read_typed, shortened, typed

INFO, FEATURES, CARD = "dataset_info.json", "features.json", "dataset.json"
FORMAT = "array_record"

_WHAT = "a dataset that `python -m har_jax.prepare` or TFDS wrote"
_AGAIN = "copy the dataset again, or prepare it anew"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS' own, where none is given
_KINDS = "tensorflow_datasets.core.features."
_SCHEMA = {
    "image": ("image_feature.Image",),
    "image/filename": ("text_feature.Text",),
    "image/id": ("tensor_feature.Tensor", "scalar.Scalar"),
    "captions": ("sequence_feature.Sequence",),
}
"""TFDS' `coco_captions`, as far as it is read. What else a dataset has is passed over."""

Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}\Z")]
_Count = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,15}\Z")]  # protobuf's JSON of an int64


class _Split(msgspec.Struct):
    name: Word
    shards: list[Size | _Count] = msgspec.field(name="shardLengths", default_factory=list)
    template: str = msgspec.field(name="filepathTemplate", default="")


class _Info(msgspec.Struct):
    name: Word
    splits: list[_Split] = []
    stored: str = msgspec.field(name="fileFormat", default="tfrecord")  # TFDS' default


class _Feature(msgspec.Struct):
    kind: str = msgspec.field(name="pythonClassName", default="")


class _FeaturesDict(msgspec.Struct):
    features: dict[str, _Feature]


class _Features(msgspec.Struct):
    top: _FeaturesDict = msgspec.field(name="featuresDict")


class FileEntry(msgspec.Struct, omit_defaults=True):
    """A file beside a card; `sha256` is "" for records."""

    bytes: Size
    sha256: str = ""


class _Card(msgspec.Struct):
    """What is asked of a card. The rest of it is for people."""

    name: str = ""
    ids: str = ""
    words: str = "ptb"
    settings: dict[str, Any] = {}
    splits: dict[str, dict[str, Any]] = {}
    files: dict[Word, FileEntry] = {}


@dataclasses.dataclass(frozen=True)
class Description:
    """A dataset's splits, without what is in them.

    Attributes:
      shards: {split: its record files in order, and how many records each is said to hold}.
      files: the files that the card lists; {} of a dataset that has no card, or an older one.
    """

    name: str
    shards: Mapping[str, Sequence[tuple[pathlib.Path, int]]]
    files: Mapping[str, FileEntry]

    @property
    def sizes(self) -> dict[str, int]:
        """{split: how many records}."""
        return {name: sum(n for _, n in files) for name, files in self.shards.items()}


def check(path: pathlib.Path, files: Mapping[str, FileEntry], *, sums: bool = False) -> None:
    """Of a file of a dataset: that it is there and as long as it was written.

    Args:
      files: what the card lists.
      sums: that its bytes are those that were written as well, where the card says which.

    Raises:
      UserError: it is not.
    """
    entry = files.get(path.name)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing ({error.strerror}); {_AGAIN}") from None
    if entry is None:
        return
    if size != entry.bytes:
        raise UserError(f"{path} has {size:,} bytes and was written with {entry.bytes:,}; {_AGAIN}")
    if sums and entry.sha256 and sha256(path) != entry.sha256:
        raise UserError(f"{path} is not as it was written (other bytes); {_AGAIN}")


def sha256(path: pathlib.Path) -> str:
    """Of a file's bytes, hexadecimal.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_card(directory: pathlib.Path) -> dict[str, Any]:
    """`dataset.json` of a dataset that `prepare` wrote; {} when there is none (foreign TFDS).

    Raises:
      UserError: there is one that cannot be read, or not as `prepare` writes it.
    """
    path = directory / CARD
    if not os.path.exists(path):  # which never raises
        return {}
    card = read_json(path, _WHAT)
    typed(card, _Card, repr(str(path)), _AGAIN)
    return card


def read_description(directory: pathlib.Path) -> Description:
    """Reads and checks what a dataset says of itself.

    Raises:
      UserError: it is damaged, not of `coco_captions`' schema, or not in ArrayRecord files.
    """
    files = typed(read_card(directory), _Card, str(directory / CARD), _AGAIN).files
    for name in (INFO, FEATURES):
        check(directory / name, files, sums=True)
    info = read_typed(directory / INFO, _Info, _WHAT)
    _check_features(directory, read_typed(directory / FEATURES, _Features, _WHAT))
    if info.stored != FORMAT:
        raise UserError(
            f"dataset {directory} is stored as {shortened(info.stored)}, which cannot be read "
            f"without TensorFlow; convert it with TFDS' convert_format to {FORMAT}"
        )
    names = [split.name for split in info.splits]
    if len(set(names)) < len(names):
        raise UserError(f"{directory / INFO} names a split twice: {_some(names)}; {_AGAIN}")
    shards = {split.name: _files_of(directory, info, split) for split in info.splits}
    return Description(info.name, shards, files)


def _check_features(directory: pathlib.Path, features: _Features) -> None:
    found = features.top.features
    missing = _SCHEMA.keys() - found.keys()
    if missing:
        raise UserError(
            f"dataset {directory} lacks the features {sorted(missing)} of TFDS' coco_captions; "
            f"it has {_some(sorted(found))}"
        )
    for name, kinds in _SCHEMA.items():
        kind = found[name].kind
        if kind not in [_KINDS + known for known in kinds]:
            raise UserError(
                f"{directory / FEATURES}: feature {name!r} is a {shortened(kind)!r}; read is "
                f"{_KINDS}{kinds[0]} alone, as in TFDS' coco_captions"
            )


def _files_of(
    directory: pathlib.Path, info: _Info, split: _Split
) -> list[tuple[pathlib.Path, int]]:
    """The record files of a split and their lengths, under the names that its template gives."""
    count = len(split.shards)
    words = {"DATASET": info.name, "SPLIT": split.name, "FILEFORMAT": FORMAT}
    found = []
    for number, records in enumerate(split.shards):
        of = f"{number:05d}-of-{count:05d}"
        words |= {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{count:05d}", "SHARD_X_OF_Y": of}
        name = split.template or _TEMPLATE
        for word, value in words.items():
            name = name.replace(f"{{{word}}}", value)
        if not re.fullmatch(r"[\w.\-]{1,250}", name) or name in (".", ".."):
            raise UserError(
                f"{directory / INFO}: {shortened(split.template)!r} names no file of the dataset; "
                f"{_AGAIN}"
            )
        found.append((directory / name, int(records)))
    return found


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{[shortened(name, 40) for name in names[:5]]}{more}"
