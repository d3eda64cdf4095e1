"""The records of a dataset: ArrayRecord files of `tf.train.Example`s in `coco_captions`' schema.

What a record holds is decided here and not by the dataset's own description: TFDS imports the
modules that a `features.json` names, and so runs whatever a downloaded dataset asks for.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import shortened


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


class Records:
    """The examples of a split by their place; files are opened when needed. Thread-safe.

    Args:
      files: the files in order, and how many records each is said to hold.
    """

    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self._files = list(files)
        self._ends = list(itertools.accumulate(count for _, count in files))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getitem__(self, place: int) -> Example:
        """
        Raises:
          UserError: the file is damaged, or holds something else.
        """
        number = bisect.bisect_right(self._ends, place)
        path, count = self._files[number]
        inside = place - (self._ends[number] - count)
        where = f"record {inside} of {path}"
        reader = self._reader(number)
        try:
            record = reader.read([inside])[0]
        except (RuntimeError, IndexError, ValueError) as error:  # as ArrayRecord tells of damage
            raise UserError(_damaged(where, error)) from error
        return parse(record, where)

    def _reader(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                self._readers[number] = _open(*self._files[number])
            return self._readers[number]


def _open(path: pathlib.Path, count: int) -> Any:
    """A reader for random access. Of a file that is none, ArrayRecord's has no records."""
    from array_record.python.array_record_module import ArrayRecordReader

    options = "readahead_buffer_size:0,max_parallelism:0"
    try:
        reader = ArrayRecordReader(os.fspath(path), options, file_reader_buffer_size=1 << 15)
        found = reader.num_records()
    except (RuntimeError, ValueError) as error:
        raise UserError(_damaged(str(path), error)) from error
    if found != count:
        what = f"holds {found:,} records that can be read, and dataset_info.json says {count:,}"
        raise UserError(_damaged(str(path), what))
    return reader


def _damaged(where: str, why: object) -> str:
    return f"{where} is damaged ({shortened(str(why))}); copy the file again, or prepare it anew"


def parse(record: bytes, where: str) -> Example:
    """An example from a serialised `tf.train.Example`; `where` it stands is for errors.

    Raises:
      UserError: it is no image with captions.
    """
    from google.protobuf.message import DecodeError

    try:
        values = _proto().FromString(record).features.feature
        (image,) = values["image"].bytes_list.value
        (filename,) = values["image/filename"].bytes_list.value
        (image_id,) = values["image/id"].int64_list.value
        texts = [text.decode() for text in values["captions/text"].bytes_list.value]
        ids = tuple(values["captions/id"].int64_list.value)
        if ids and len(ids) != len(texts):
            raise ValueError(f"{len(texts)} captions and {len(ids)} ids of captions")
        return Example(image_id, filename.decode(), image, texts, ids)
    except (DecodeError, ValueError) as error:  # ValueError: none or several, or not UTF-8
        raise UserError(f"{where} is no image with captions: {shortened(str(error))}") from error


def load_libraries() -> None:
    """Imports what reading takes. Whoever opens a dataset calls it, before there are threads:
    several of them that import TFDS at once, with its modules that load when they are touched, can
    wait for each other for ever."""
    import array_record.python.array_record_module  # noqa: F401

    _proto()


@functools.cache
def _proto() -> Any:
    with quiet():
        from tensorflow_datasets.proto import tf_example_pb2

        module: Any = tf_example_pb2  # made when it is imported
    return module.Example


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
