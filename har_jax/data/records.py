"""ArrayRecord shards in the schema of TFDS' `coco_captions`, and TFDS' description of them.

A shard is written by itself, so that a dataset can be continued where it was left; TFDS'
`SequentialWriter` cannot. Nothing here touches TensorFlow.
"""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.data.shards import Example, quiet

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def shard_name(dataset: str, split: str, number: int) -> str:
    """What TFDS calls this file."""
    return f"{dataset}-{split}.array_record-{number:05d}"


def features() -> Any:
    """`image` (encoded), `image/filename`, `image/id`, and `captions` of `id` and `text`."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
    )


class RecordFile:
    """One ArrayRecord file being written, in a `with`.

    Attributes:
      num_bytes: of the records so far, as TFDS counts them.

    Raises:
      OSError: as a full disk does (array_record itself raises RuntimeError).
    """

    def __init__(self, path: pathlib.Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self.num_bytes = path, 0
        with quiet():
            self._features = features()
            from tensorflow_datasets.core.example_serializer import ExampleSerializer

            self._serializer = ExampleSerializer(self._features.get_serialized_info())
        try:
            self._writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        except RuntimeError as error:
            raise _os_error(error) from error

    def __enter__(self) -> RecordFile:
        return self

    def add(self, example: Example) -> None:
        encoded = self._features.encode_example(
            {
                "image": example.image,
                "image/filename": example.filename,
                "image/id": example.image_id,
                "captions": [
                    {"id": i, "text": text}
                    for i, text in zip(example.caption_ids, example.captions, strict=True)
                ],
            }
        )
        proto = self._serializer.get_tf_example(encoded)
        # The order of a map's entries otherwise differs from process to process.
        record = proto.SerializeToString(deterministic=True)
        self.num_bytes += len(record)
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise _os_error(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes the file. Where writing has failed, how closing fails is of no interest."""
        try:
            self._writer.close()
        except RuntimeError as error:
            if kind is None:
                raise _os_error(error) from error


def _os_error(error: RuntimeError) -> Exception:
    """The operating system's error that array_record tells in words; the error itself if none."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code))
    return error


def write_description(
    directory: pathlib.Path,
    name: str,
    description: str,
    shards: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
    """Writes `dataset_info.json` and `features.json`.

    Args:
      shards: {split: (records, bytes of records) of each shard}.
    """
    with quiet():
        import tensorflow_datasets as tfds
        from etils import epath
        from tensorflow_datasets.core import naming
        from tensorflow_datasets.core.dataset_info import DatasetIdentity
        from tensorflow_datasets.core.splits import SplitDict

        identity = DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(directory),
            module_name="har_jax",
        )
        info = tfds.core.DatasetInfo(builder=identity, features=features(), description=description)
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=False)
        splits = []
        for split, sizes in shards.items():
            template = naming.ShardedFileTemplate(
                dataset_name=name,
                data_dir=epath.Path(directory),
                split=split,
                filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
                template=_TEMPLATE,
            )
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[records for records, _ in sizes],
                    num_bytes=sum(size for _, size in sizes),
                    filename_template=template,
                )
            )
        info.set_splits(SplitDict(splits))
        info.write_to_directory(directory)
