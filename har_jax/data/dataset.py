"""A dataset on disk: TFDS records in `coco_captions`' schema, read without TensorFlow.

    DIR/dataset_info.json, features.json      TFDS' own description
    DIR/NAME-SPLIT.array_record-00000 ...     image (encoded), image/filename, image/id, captions
    DIR/captions.SPLIT.json                   the captions again, as COCO's JSON: an index, so that
                                              references are had without reading gigabytes of
                                              images; with the sha256 of each image's bytes
    DIR/document_frequency.SPLIT.npz          `metrics.cider_d.DocumentFrequency` of its references
    DIR/dataset.json                          what is in it, and how it was made

`data.builder` writes it. Any other ArrayRecord dataset of that schema reads as well; the last three
kinds of file are then absent and captions come from the records. TFDS itself is not asked: it would
import what a dataset names (`data.description`, `data.shards`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from har_jax.data import description
from har_jax.data.description import Description
from har_jax.data.shards import Example, Records, load_libraries
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import read_typed
from har_jax.text.words import PTB, Words, find_words, is_code

PathLike = str | os.PathLike[str]


def document_frequency_path(directory: PathLike, split: str = "train") -> pathlib.Path:
    """Where the document frequencies of a split's references are kept."""
    return pathlib.Path(directory) / f"document_frequency.{split}.npz"


def read_card(directory: PathLike) -> dict[str, Any]:
    """`dataset.json` of a dataset that `prepare` wrote; {} when there is none (foreign TFDS).

    Raises:
      UserError: there is one that cannot be read, or not as `prepare` writes it.
    """
    return description.read_card(pathlib.Path(directory))


def id_space(directory: PathLike) -> str:
    """Which ids a dataset's images have: two datasets of one space name an image by the same id.

    "" where they mean nothing outside of the dataset (see `data.entries.Reading.ids`).
    """
    card = read_card(directory)
    if "ids" in card:
        return card["ids"]
    if card.get("name") == "scenes":  # written before cards said so
        return f"scenes-{card.get('settings', {}).get('seed')}"
    if card:
        return "coco" if card.get("name") == "coco" else ""
    return "coco" if _open(pathlib.Path(directory)).name == "coco_captions" else ""


def words_of(directory: PathLike, asked: str = "") -> Words:
    """The words that a dataset's captions are counted in: those that it was prepared with.

    Args:
      asked: the name that a user gives them, "" for none. Those of a function have to be named
        here too: a dataset may come from anybody, and no code is run for being named in it.

    Raises:
      UserError: they are those of a function that is not asked for, others are asked for than the
        dataset was prepared with, or they cannot be had (`find_words`).
    """
    card = read_card(directory)
    prepared = card.get("words", PTB.name)
    if not asked and is_code(prepared):
        raise UserError(
            f"dataset {directory} counts the words of a function, {prepared}, which is run only "
            f"where it is asked for: --config.data.words={prepared} in training, "
            f"--words={prepared} in evaluation"
        )
    if asked and card and asked != prepared:
        raise UserError(
            f"dataset {directory} was prepared with --words={prepared}, and words={asked} are "
            "asked for; leave that out, or prepare the dataset again with them"
        )
    return find_words(asked or prepared)


@dataclasses.dataclass(frozen=True)
class Listing:
    """All of a split but its images, in order; each list is as long as the split.

    Attributes:
      contents: sha256 of each image's bytes, hexadecimal; None where the dataset does not say.
      domains: nocaps' domain of each image; None in other datasets.
    """

    ids: list[int]
    filenames: list[str]
    captions: list[list[str]]
    contents: list[str] | None = None
    domains: list[str] | None = None


def split_names(directory: PathLike) -> list[str]:
    """The splits that a dataset has.

    Raises:
      UserError: see `open_split`.
    """
    return list(_open(pathlib.Path(directory)).shards)


def _open(directory: pathlib.Path) -> Description:
    """What a dataset says of itself."""
    if not os.path.isfile(directory / description.INFO):  # which never raises
        there = "does not exist"
        if os.path.exists(directory):
            there = "is not a dataset (no dataset_info.json)"
        raise UserError(
            f"dataset {directory} {there}; make one with "
            f"`python -m har_jax.prepare scenes --out={directory}`, or `prepare coco` or `folder`"
        )
    return description.read_description(directory)


def open_split(directory: PathLike, split: str) -> Split:
    """Opens one split of a dataset directory; only metadata is read.

    Raises:
      UserError: no dataset there, no such split, one that is not of `coco_captions`' schema, or
        files that are missing or cut off.
    """
    directory = pathlib.Path(directory)
    found = _open(directory)
    if split not in found.shards:
        held = [f"{name} ({n} images)" for name, n in found.sizes.items()]
        raise UserError(
            f"dataset {directory} has no split {split!r}{did_you_mean(split, found.sizes)}; "
            f"it has {', '.join(held[:20]) or 'none'}"
        )
    for path, _ in found.shards[split]:
        description.check(path, found.files)
    for path in (captions_path(directory, split), document_frequency_path(directory, split)):
        # Cards list both. Older ones list nothing, but captions were always written with them.
        if path.name in found.files or (read_card(directory) and path.suffix == ".json"):
            description.check(path, found.files)
    load_libraries()
    return Split(directory, split, found.sizes[split])


class Split(Sequence):
    """Read-only sequence of `Example`s in the order of the records, and their `Images`.

    No image is decoded.

    Attributes:
      directory, name: where it came from.
    """

    def __init__(self, directory: pathlib.Path, name: str, length: int):
        self.directory, self.name, self._length = directory, name, length

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Split({str(self.directory)!r}, {self.name!r}, {self._length} images)"

    def __str__(self) -> str:
        return f"{self.name!r} of {self.directory}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickles for worker processes without open files and caches."""
        return {"directory": self.directory, "name": self.name, "_length": self._length}

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        if not isinstance(index, (int, np.integer)):
            raise TypeError(f"a split takes one index, got {index!r}")
        if not -self._length <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        return self._example(int(index) % self._length)

    def _example(self, position: int) -> Example:
        return self._records[position]

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(self._length))

    @functools.cached_property
    def _records(self) -> Records:
        return Records(_open(self.directory).shards[self.name])

    @functools.cached_property
    def listing(self) -> Listing:
        """Ids, names and captions of all examples, from `captions.SPLIT.json` where it is.

        Raises:
          UserError: it is damaged or of another dataset, or ids repeat.
        """
        path = captions_path(self.directory, self.name)
        if os.path.exists(path):
            description.check(path, _open(self.directory).files, sums=True)
            found = _listed(read_typed(path, _Index, "the captions that `prepare` wrote"), path)
        else:
            few = [(each.image_id, each.filename, each.captions) for each in self]  # no image
            found = Listing([i for i, _, _ in few], [n for _, n, _ in few], [c for *_, c in few])
        if len(found.ids) != self._length:
            raise UserError(
                f"{path} lists {len(found.ids)} images but the records of {self.name!r} hold "
                f"{self._length}: they do not belong together; prepare the dataset again"
            )
        if len(set(found.ids)) < len(found.ids):
            twice = next(i for i, n in collections.Counter(found.ids).items() if n > 1)
            raise UserError(
                f"image id {twice} occurs twice in {self.name!r} of {self.directory}; image ids "
                "must be unique; prepare the dataset again"
            )
        return found

    @property
    def ids(self) -> list[int]:
        """Image ids in the order of the examples."""
        return self.listing.ids

    def read(self, i: int) -> bytes:
        """The encoded bytes of an example's image.

        Raises:
          UserError: the record is damaged, or of another image than is listed.
        """
        example = self[i]
        if example.image_id != self.ids[i]:
            raise UserError(
                f"record {i} of {self.name!r} of {self.directory} is image {example.image_id}, and "
                f"listed is {self.ids[i]}: they do not belong together; prepare the dataset again"
            )
        return example.image

    def name_of(self, i: int) -> str:
        """What errors call an image."""
        return f"{self.filenames[i]} (id {self.ids[i]}) of {self.directory}"

    @property
    def filenames(self) -> list[str]:
        return self.listing.filenames

    @property
    def captions(self) -> list[list[str]]:
        """Captions of each example, in order."""
        return self.listing.captions

    def references(self) -> dict[int, list[str]]:
        """{image id: its captions}; no image is decoded."""
        return dict(zip(self.ids, self.captions, strict=True))


_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Image(msgspec.Struct):
    id: _Id
    file_name: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    domain: str | None = None


class _Caption(msgspec.Struct):
    image_id: _Id
    caption: str


class _Index(msgspec.Struct):
    """A `captions.SPLIT.json`."""

    images: list[_Image]
    annotations: list[_Caption]


def _listed(index: _Index, path: pathlib.Path) -> Listing:
    captions: dict[int, list[str]] = {image.id: [] for image in index.images}
    for annotation in index.annotations:
        if annotation.image_id not in captions:
            raise UserError(
                f"{path} has a caption of image {annotation.image_id}, which it does not list; "
                "prepare the dataset again"
            )
        captions[annotation.image_id].append(annotation.caption)
    return Listing(
        [image.id for image in index.images],
        [image.file_name for image in index.images],
        [captions[image.id] for image in index.images],
        _column([image.sha256 for image in index.images]),
        _column([image.domain for image in index.images]),
    )


def _column(values: Sequence[str | None]) -> list[str] | None:
    """One value of every image; None unless all have it."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def captions_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """The captions of a split as COCO's JSON; `evaluate --references` takes it too."""
    return directory / f"captions.{split}.json"
