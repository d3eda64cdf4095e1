"""A dataset on disk: TFDS records in `coco_captions`' schema, written and read without TensorFlow.

    DIR/dataset_info.json, features.json      TFDS' own description
    DIR/NAME-SPLIT.array_record-00000 ...     image (encoded), image/filename, image/id, captions
    DIR/captions.SPLIT.json                   the captions again, as COCO's JSON: an index, so that
                                              references are had without reading gigabytes of images
    DIR/document_frequency.train.npz          `metrics.cider_d.DocumentFrequency` of train
    DIR/dataset.json                          what is in it, and how it was made

Any other ArrayRecord dataset of that schema reads as well; the last three files are then absent and
captions come from the records. tensorflow_datasets takes 0.3 s to import, hence inside functions.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.errors import UserError, did_you_mean

PathLike = str | os.PathLike[str]

EXAMPLES_PER_SHARD = 4096
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


# ------------------------------------------------------------------------------------- reading


def open_split(directory: PathLike, split: str) -> Split:
    """Opens one split of a dataset directory; only metadata is read.

    Raises:
      UserError: no dataset there, no such split, or one that is not of `coco_captions`' schema.
    """
    directory = pathlib.Path(directory)
    if not (directory / "dataset_info.json").is_file():
        there = "is not a dataset (no dataset_info.json)" if directory.exists() else "does not exist"
        raise UserError(
            f"dataset {directory} {there}; make one with "
            f"`python -m har_jax.prepare scenes --out={directory}` or `prepare coco`"
        )
    with _quiet():
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(directory)
        except Exception as error:  # TFDS raises whatever its parsers do
            raise UserError(f"dataset {directory} does not open with TFDS: {error}") from error
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    if split not in splits:
        raise UserError(
            f"dataset {directory} has no split {split!r}{did_you_mean(split, splits)}; "
            f"it has {', '.join(f'{name} ({n} images)' for name, n in splits.items()) or 'none'}"
        )
    missing = {"image", "image/id", "image/filename", "captions"} - set(builder.info.features)
    if missing:
        raise UserError(
            f"dataset {directory} lacks the features {sorted(missing)} of TFDS' coco_captions; "
            f"it has {sorted(builder.info.features)}"
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"dataset {directory} is stored as {builder.info.file_format.value}, which cannot be "
            "read without TensorFlow; convert it with TFDS' convert_format to array_record"
        )
    return Split(directory, split, splits[split])


class Split(Sequence):
    """Read-only sequence of `Example`s in the order of the records. Images are never decoded.

    Attributes:
      directory, name: where it came from.
    """

    def __init__(self, directory: pathlib.Path, name: str, length: int):
        self.directory, self.name, self._length = directory, name, length

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Split({str(self.directory)!r}, {self.name!r}, {self._length} images)"

    def __getstate__(self) -> dict[str, Any]:
        """Pickles for worker processes without open files and caches."""
        return {"directory": self.directory, "name": self.name, "_length": self._length}

    def __getitem__(self, index: int) -> Example:
        if not isinstance(index, (int, np.integer)):
            raise TypeError(f"a split takes one index, got {index!r}")
        if not -self._length <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        return _example(self._source[int(index) % self._length])

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(self._length))

    @functools.cached_property
    def _source(self) -> Any:
        """TFDS data source of records with the image left encoded."""
        with _quiet():
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(self.directory)
            return builder.as_data_source(
                self.name, decoders={"image": tfds.decode.SkipDecoding()}
            )

    @functools.cached_property
    def _index(self) -> tuple[list[int], list[str], list[list[str]]]:
        """(image ids, filenames, captions) of all examples, in order."""
        path = _captions_path(self.directory, self.name)
        try:
            coco = json.loads(path.read_text())
        except FileNotFoundError:
            rows = [(e.image_id, e.filename, e.captions) for e in self]
            return tuple(map(list, zip(*rows, strict=True))) if rows else ([], [], [])
        ids = [image["id"] for image in coco["images"]]
        if len(ids) != self._length:
            raise UserError(
                f"{path} lists {len(ids)} images but the records of {self.name!r} hold "
                f"{self._length}: they do not belong together; prepare the dataset again"
            )
        captions: dict[int, list[str]] = {image_id: [] for image_id in ids}
        for annotation in coco["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return ids, [image["file_name"] for image in coco["images"]], list(captions.values())

    @property
    def image_ids(self) -> list[int]:
        """Image ids in the order of the examples."""
        return self._index[0]

    @property
    def filenames(self) -> list[str]:
        return self._index[1]

    @property
    def captions(self) -> list[list[str]]:
        """Captions of each example, in order."""
        return self._index[2]

    def references(self) -> dict[int, list[str]]:
        """{image id: its captions}; no image is decoded."""
        return dict(zip(self.image_ids, self.captions, strict=True))


def _example(record: Mapping[str, Any]) -> Example:
    captions = record["captions"]
    return Example(
        int(record["image/id"]),
        _text(record["image/filename"]),
        bytes(record["image"]),
        [_text(text) for text in captions["text"]],
        tuple(int(i) for i in captions["id"]) if "id" in captions else (),
    )


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")


# ------------------------------------------------------------------------------------- writing


@dataclasses.dataclass
class Tally:
    """Counts of one split, for `dataset.json` and the closing report."""

    images: int = 0
    captions: int = 0
    per_image: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    vocabulary: set = dataclasses.field(default_factory=set)

    def add(self, words: Sequence[Sequence[str]]) -> None:
        """Counts one image, given the words of each of its captions."""
        self.images += 1
        self.captions += len(words)
        self.per_image[len(words)] += 1
        for caption in words:
            self.lengths[len(caption)] += 1
            self.vocabulary.update(caption)

    def summary(self) -> dict[str, Any]:
        """JSON-able figures; lengths are in words as COCO's evaluation counts them."""
        lengths = list(self.lengths.elements())
        return {
            "images": self.images,
            "captions": self.captions,
            "references_per_image": {str(n): c for n, c in sorted(self.per_image.items())},
            "vocabulary": len(self.vocabulary),
            "words_per_caption": {
                "mean": round(float(np.mean(lengths)), 2) if lengths else 0.0,
                "median": int(np.median(lengths)) if lengths else 0,
                "max": max(lengths, default=0),
            },
        }


def write(
    directory: PathLike,
    examples: Iterable[tuple[str, Example]],
    *,
    name: str,
    splits: Sequence[str],
    description: str,
    settings: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset; nothing appears under the final name before all of it is written.

    Args:
      examples: (split, example) in any order.
      name: of the dataset: a lower-case word.
      splits: all the splits, also those that may stay empty (which are then left out).
      settings: how it was made, JSON-able; goes to `dataset.json`.
      overwrite: replace what is at `directory`.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: `directory` is taken, a name is malformed, ids repeat, or nothing was given.
    """
    directory = pathlib.Path(directory)
    check_free(directory, overwrite=overwrite)
    for word in (name, *splits):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            raise UserError(f"{word!r} cannot name a dataset or split; use lower-case letters")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(
        tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.partial-")
    )
    try:
        card = _write_files(scratch, examples, name, splits, description, settings)
        os.chmod(scratch, 0o755)  # temporary directories are private by default
        _publish(scratch, directory, overwrite=overwrite)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return card


def check_free(directory: PathLike, *, overwrite: bool) -> None:
    """Raises UserError when `directory` holds something that must not be replaced."""
    directory = pathlib.Path(directory)
    if directory.is_dir():
        if any(directory.iterdir()) and not overwrite:
            raise UserError(
                f"{directory} exists and is not empty; choose another --out or pass --overwrite"
            )
        if overwrite and any(directory.iterdir()) and not (directory / "dataset_info.json").exists():
            raise UserError(f"{directory} is not a dataset; --overwrite replaces datasets only")
    elif directory.exists():
        raise UserError(f"{directory} is a file; --out must name a directory")


def _publish(scratch: pathlib.Path, directory: pathlib.Path, *, overwrite: bool) -> None:
    """Renames the finished dataset into place; what was there goes away last."""
    check_free(directory, overwrite=overwrite)  # someone else may have finished meanwhile
    old = scratch.with_name(scratch.name + ".old")
    if directory.exists() and any(directory.iterdir()):
        os.rename(directory, old)
    try:
        os.rename(scratch, directory)
    except OSError as error:
        raise UserError(
            f"{directory} came into being while the dataset was written ({error.strerror}); "
            "is another `prepare` writing there?"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _write_files(
    scratch: pathlib.Path,
    examples: Iterable[tuple[str, Example]],
    name: str,
    splits: Sequence[str],
    description: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    from har_jax.metrics.cider_d import DocumentFrequency
    from har_jax.text import ptb

    tallies = {split: Tally() for split in splits}
    indices: dict[str, dict[str, list]] = {
        split: {"images": [], "annotations": []} for split in splits
    }
    train_words: list[list[list[str]]] = []
    seen: set[int] = set()
    next_caption_id = 1
    with _quiet(), _Records(scratch, name, description) as records:
        for split, example in examples:
            if example.image_id in seen:
                raise UserError(f"image id {example.image_id} occurs twice; ids must be unique")
            seen.add(example.image_id)
            ids = example.caption_ids
            if len(ids) != len(example.captions):
                ids = range(next_caption_id, next_caption_id + len(example.captions))
                next_caption_id = ids.stop
            records.add(split, example, ids)
            index = indices[split]
            index["images"].append({"id": example.image_id, "file_name": example.filename})
            index["annotations"] += [
                {"id": i, "image_id": example.image_id, "caption": caption}
                for i, caption in zip(ids, example.captions, strict=True)
            ]
            words = [ptb.words(caption) for caption in example.captions]
            tallies[split].add(words)
            if split == "train":
                train_words.append(words)
    found = [split for split in splits if tallies[split].images]
    if not found:
        raise UserError("there is no image to write: nothing was found, or everything was dropped")
    for split in found:
        _captions_path(scratch, split).write_text(json.dumps(indices[split]))
    if train_words:
        frequencies = DocumentFrequency.from_references(train_words, name="train")
        frequencies.save(document_frequency_path(scratch))
    card = {
        "name": name,
        "description": description,
        "made_by": "har_jax.prepare",
        "settings": dict(settings),
        "splits": {split: tallies[split].summary() for split in found},
    }
    (scratch / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


class _Records:
    """Writes the records with TFDS' own writer, which never touches TensorFlow for ArrayRecord."""

    def __init__(self, directory: pathlib.Path, name: str, description: str):
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "captions": tfds.features.Sequence(
                    {"id": np.int64, "text": tfds.features.Text()}
                ),
            }
        )
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(directory),
            module_name="har_jax",
        )
        info = tfds.core.DatasetInfo(
            builder=identity, features=features, description=description
        )
        self._writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=EXAMPLES_PER_SHARD, file_format="array_record"
        )
        # The writer rewrites its metadata at every call, so examples are handed over in bunches,
        # bounded in bytes because photographs are.
        self._bunch: dict[str, list[dict[str, Any]]] = {}
        self._bytes = 0

    def __enter__(self) -> _Records:
        return self

    def add(self, split: str, example: Example, caption_ids: Iterable[int]) -> None:
        record = {
            "image": example.image,
            "image/filename": example.filename,
            "image/id": example.image_id,
            "captions": [
                {"id": i, "text": text}
                for i, text in zip(caption_ids, example.captions, strict=True)
            ],
        }
        self._bunch.setdefault(split, []).append(record)
        self._bytes += len(example.image)
        if self._bytes > 16 << 20:
            self._flush()

    def _flush(self) -> None:
        if self._bunch:
            self._writer.initialize_splits(list(self._bunch), fail_if_exists=False)
            self._writer.add_examples(self._bunch)
        self._bunch, self._bytes = {}, 0

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close_all()


def _captions_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    return directory / f"captions.{split}.json"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS' chatter (absl warnings about OpenCV and versions) out of our commands."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
