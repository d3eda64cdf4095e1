"""A dataset on disk: TFDS records in `coco_captions`' schema, read without TensorFlow.

    DIR/dataset_info.json, features.json      TFDS' own description
    DIR/NAME-SPLIT.array_record-00000 ...     image (encoded), image/filename, image/id, captions
    DIR/captions.SPLIT.json                   the captions again, as COCO's JSON: an index, so that
                                              references are had without reading gigabytes of
                                              images; with the sha256 of each image's bytes
    DIR/document_frequency.SPLIT.npz          `metrics.cider_d.DocumentFrequency` of its references
    DIR/dataset.json                          what is in it, and how it was made

`data.builder` writes it. Any other ArrayRecord dataset of that schema reads as well; the last three
kinds of file are then absent and captions come from the records. tensorflow_datasets takes 0.3 s to
import, hence the imports inside functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.errors import UserError, did_you_mean

PathLike = str | os.PathLike[str]

CARD = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and all its captions.

    Attributes:
      image_id: unique within a dataset.
      filename: the image's name where it came from.
      image: the encoded bytes (JPEG or PNG), as they came.
      captions: the references.
      caption_ids: ids of the captions where they have some (COCO annotation ids), or empty.
    """

    image_id: int
    filename: str
    image: bytes
    captions: list[str]
    caption_ids: tuple[int, ...] = ()


def document_frequency_path(directory: PathLike, split: str = "train") -> pathlib.Path:
    """Where the document frequencies of a split's references are kept."""
    return pathlib.Path(directory) / f"document_frequency.{split}.npz"


def read_card(directory: PathLike) -> dict[str, Any]:
    """`dataset.json` of a dataset that `prepare` wrote; {} when there is none (foreign TFDS)."""
    try:
        return json.loads((pathlib.Path(directory) / CARD).read_text())
    except FileNotFoundError:
        return {}


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
    try:
        info = json.loads((pathlib.Path(directory) / "dataset_info.json").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return "coco" if info.get("name") == "coco_captions" else ""


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
    return list(_open(pathlib.Path(directory)).info.splits)


def _open(directory: pathlib.Path) -> Any:
    """TFDS' builder of a dataset directory."""
    if not (directory / "dataset_info.json").is_file():
        there = "does not exist"
        if directory.exists():
            there = "is not a dataset (no dataset_info.json)"
        raise UserError(
            f"dataset {directory} {there}; make one with "
            f"`python -m har_jax.prepare scenes --out={directory}`, or `prepare coco` or `folder`"
        )
    with quiet():
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(directory)
        except Exception as error:  # TFDS raises whatever its parsers do
            raise UserError(f"dataset {directory} does not open with TFDS: {error}") from error


def open_split(directory: PathLike, split: str) -> Split:
    """Opens one split of a dataset directory; only metadata is read.

    Raises:
      UserError: no dataset there, no such split, or one that is not of `coco_captions`' schema.
    """
    directory = pathlib.Path(directory)
    builder = _open(directory)
    import tensorflow_datasets as tfds

    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    if split not in splits:
        raise UserError(
            f"dataset {directory} has no split {split!r}{did_you_mean(split, splits)}; "
            f"it has {', '.join(f'{name} ({n} images)' for name, n in splits.items()) or 'none'}"
        )
    features: Any = builder.info.features
    missing = {"image", "image/id", "image/filename", "captions"} - set(features)
    if missing:
        raise UserError(
            f"dataset {directory} lacks the features {sorted(missing)} of TFDS' coco_captions; "
            f"it has {sorted(features)}"
        )
    stored: Any = builder.info.file_format
    if stored is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"dataset {directory} is stored as {stored.value}, which cannot be "
            "read without TensorFlow; convert it with TFDS' convert_format to array_record"
        )
    return Split(directory, split, splits[split])


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
        record = self._source[position]
        captions = record["captions"]
        return Example(
            int(record["image/id"]),
            _text(record["image/filename"]),
            bytes(record["image"]),
            [_text(text) for text in captions["text"]],
            tuple(int(i) for i in captions["id"]) if "id" in captions else (),
        )

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(self._length))

    @functools.cached_property
    def _source(self) -> Any:
        """TFDS data source of records with the image left encoded."""
        with quiet():
            import tensorflow_datasets as tfds

            builder: Any = tfds.builder_from_directory(self.directory)
            return builder.as_data_source(self.name, decoders={"image": tfds.decode.SkipDecoding()})

    @functools.cached_property
    def listing(self) -> Listing:
        """Ids, names and captions of all examples, from `captions.SPLIT.json` where it is."""
        path = captions_path(self.directory, self.name)
        try:
            coco = json.loads(path.read_text())
        except FileNotFoundError:
            few = [(each.image_id, each.filename, each.captions) for each in self]  # no image
            return Listing([i for i, _, _ in few], [n for _, n, _ in few], [c for *_, c in few])
        images = coco["images"]
        ids = [image["id"] for image in images]
        if len(ids) != self._length:
            raise UserError(
                f"{path} lists {len(ids)} images but the records of {self.name!r} hold "
                f"{self._length}: they do not belong together; prepare the dataset again"
            )
        captions: dict[int, list[str]] = {image_id: [] for image_id in ids}
        for annotation in coco["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return Listing(
            ids,
            [image["file_name"] for image in images],
            list(captions.values()),
            _column(images, "sha256"),
            _column(images, "domain"),
        )

    @property
    def ids(self) -> list[int]:
        """Image ids in the order of the examples."""
        return self.listing.ids

    def read(self, i: int) -> bytes:
        """The encoded bytes of an example's image."""
        return self[i].image

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


def _column(images: Sequence[Mapping[str, Any]], key: str) -> list[str] | None:
    """One value of every image; None unless all have it."""
    values = [image[key] for image in images if key in image]
    return values if len(values) == len(images) else None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")


def captions_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """The captions of a split as COCO's JSON; `evaluate --references` takes it too."""
    return directory / f"captions.{split}.json"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS' chatter (absl warnings about OpenCV and versions) out of our commands."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
