"""Writes a dataset (see `data.dataset` for what is in it): whole, or not at all.

Everything is written into a directory beside the final one, which is renamed at the end; a run that
is killed leaves at most a hidden `.NAME.partial-*`.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.data.dataset import (
    CARD,
    Example,
    PathLike,
    captions_path,
    document_frequency_path,
    quiet,
)
from har_jax.errors import UserError
from har_jax.version import __version__

EXAMPLES_PER_SHARD = 4096


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
    dropped: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset; nothing appears under the final name before all of it is written.

    Args:
      examples: (split, example) in any order.
      name: of the dataset: a lower-case word.
      splits: all the splits, also those that may stay empty (which are then left out).
      settings: how it was made, JSON-able; goes to `dataset.json`.
      dropped: {kind: count} of what `examples` left out, read after the last example.
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
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(
            tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.partial-")
        )
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror}; choose another --out"
        ) from error
    try:
        card = _write_files(scratch, examples, name, splits, description)
        card |= {"settings": dict(settings), "dropped": dict(dropped or {})}
        (scratch / CARD).write_text(json.dumps(card, indent=2) + "\n")
        os.chmod(scratch, 0o755)  # temporary directories are private by default
        _publish(scratch, directory, overwrite=overwrite)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"cannot write {directory}: {error.strerror}; nothing was left there"
        ) from error
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
        if (
            overwrite
            and any(directory.iterdir())
            and not (directory / "dataset_info.json").exists()
        ):
            raise UserError(f"{directory} is not a dataset; --overwrite replaces datasets only")
    elif directory.exists():
        raise UserError(f"{directory} is a file; --out must name a directory")


def _publish(scratch: pathlib.Path, directory: pathlib.Path, *, overwrite: bool) -> None:
    """Renames the finished dataset into place; what was there goes away last."""
    check_free(directory, overwrite=overwrite)  # someone else may have finished meanwhile
    old = scratch.with_name(scratch.name + ".old")
    replaced = directory.exists() and any(directory.iterdir())
    if replaced:
        os.rename(directory, old)
    try:
        os.rename(scratch, directory)
    except OSError as error:
        if replaced and not directory.exists():
            os.rename(old, directory)
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
) -> dict[str, Any]:
    from har_jax.metrics.cider_d import DocumentFrequency
    from har_jax.text import ptb

    tallies = {split: Tally() for split in splits}
    indices: dict[str, dict[str, list]] = {
        split: {"images": [], "annotations": []} for split in splits
    }
    references: dict[str, list[list[list[str]]]] = {split: [] for split in splits}
    seen: set[int] = set()
    next_caption_id = 1
    with quiet(), _Records(scratch, name, description) as records:
        for split, example in examples:
            if example.image_id in seen:
                raise UserError(
                    f"image id {example.image_id} occurs twice; image ids must be unique"
                )
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
            # Interned: COCO has 6 million words but 30,000 different ones.
            words = [[sys.intern(w) for w in ptb.words(text)] for text in example.captions]
            tallies[split].add(words)
            references[split].append(words)
    found = [split for split in splits if tallies[split].images]
    if not found:
        raise UserError("there is no image to write: nothing was found, or everything was dropped")
    for split in found:
        captions_path(scratch, split).write_text(json.dumps(indices[split]))
        # Of every split, since some train on another than "train"; each costs a few hundred kB.
        frequencies = DocumentFrequency.from_references(references[split], name=split)
        frequencies.save(document_frequency_path(scratch, split))
    return {
        "name": name,
        "description": description,
        "made_by": f"har_jax {__version__}",
        "splits": {split: tallies[split].summary() for split in found},
    }


class _Records:
    """Writes the records with TFDS' own writer, which never touches TensorFlow for ArrayRecord."""

    def __init__(self, directory: pathlib.Path, name: str, description: str):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.dataset_info import DatasetIdentity

        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            }
        )
        identity = DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(directory),
            module_name="har_jax",
        )
        info = tfds.core.DatasetInfo(builder=identity, features=features, description=description)
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


def report(card: Mapping[str, Any]) -> Iterator[str]:
    """The contents of `dataset.json`, in lines for a person."""
    for split, figures in card["splits"].items():
        spread = ", ".join(f"{n} x {count}" for n, count in figures["references_per_image"].items())
        words = figures["words_per_caption"]
        yield f"  {split}: {figures['images']} images, {figures['captions']} captions"
        yield f"    references per image (references x images): {spread}"
        yield (
            f"    words per caption: {words['mean']} on average, {words['max']} at most; "
            f"vocabulary of {figures['vocabulary']} words"
        )
    if not card["dropped"]:
        yield "  nothing was dropped"
