"""Which images two splits share: by id where their ids are comparable, and always by content.

A run keeps the images that it was trained on (`trained_on.npz`, 16 bytes each), so that whoever
scores it can tell, also when the dataset has gone or was prepared anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from har_jax.data.dataset import PathLike, Split, id_space, open_split, split_names
from har_jax.errors import UserError
from har_jax.files import write_bytes

TRAINED_ON = "trained_on.npz"
_HASHED_AT_ONCE = 1 << 30  # bytes of records that are read where a dataset keeps no hashes


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
      ids_of: the id space (`data.dataset.id_space`); "": ids mean nothing elsewhere.
      ids: image ids.
      contents: the first 64 bits of the sha256 of each image's bytes; empty where unknown.
    """

    ids_of: str
    ids: frozenset[int]
    contents: frozenset[int]

    @property
    def fingerprint(self) -> str:
        """sha256 over all of it, in hexadecimal."""
        digest = hashlib.sha256(self.ids_of.encode() + b"\0")
        for values, kind in ((self.ids, np.int64), (self.contents, np.uint64)):
            digest.update(np.array(sorted(values), kind).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Shared:
    """What is in both: ids of the images, in the order of the split that was asked about."""

    by_id: list[int]
    by_content: list[int]

    @property
    def ids(self) -> list[int]:
        return list(dict.fromkeys([*self.by_id, *self.by_content]))

    def __str__(self) -> str:
        """How many and which, e.g. "3 images (by id: 7, 9; by content: 12)"."""
        parts = []
        for how, ids in (("id", self.by_id), ("content", self.by_content)):
            if ids:
                more = ", ..." if len(ids) > 3 else ""
                parts.append(f"{len(ids)} by {how}: {', '.join(map(str, ids[:3]))}{more}")
        count = len(self.ids)
        return f"{count} {'image' if count == 1 else 'images'} ({'; '.join(parts)})"


def image_set(split: Split) -> ImageSet:
    """The images of a split. Records are read only where a small dataset keeps no hashes."""
    contents = contents_of(split)
    known = frozenset() if contents is None else frozenset(contents)
    return ImageSet(id_space(split.directory), frozenset(split.ids), known)


def contents_of(split: Split) -> list[int] | None:
    """64 bits of each image's sha256, in order; None where finding out takes too long."""
    hashes = split.listing.contents
    if hashes is None:
        # By whole files: of a subset this is an upper bound.
        files = split.directory.glob(f"*-{split.name}.array_record*")
        if sum(file.stat().st_size for file in files) > _HASHED_AT_ONCE:
            return None
        hashes = [hashlib.sha256(example.image).hexdigest() for example in split]
    return [content_key(each) for each in hashes]


def content_key(sha256: str) -> int:
    """The first 64 bits of a hexadecimal sha256: enough to tell any two images apart."""
    return int(sha256[:16], 16)


def read_image_set(spec: str) -> ImageSet:
    """The images of a dataset, "DIR", or of one split of it, "DIR:SPLIT".

    Raises:
      UserError: no such dataset or split.
    """
    directory, _, split = spec.rpartition(":")
    if not directory or pathlib.Path(spec).is_dir():
        directory, split = spec, ""
    found = [open_split(directory, name) for name in ([split] if split else split_names(directory))]
    parts = [image_set(each) for each in found]
    return ImageSet(
        parts[0].ids_of,
        frozenset().union(*(part.ids for part in parts)),
        frozenset().union(*(part.contents for part in parts)),
    )


def shared(split: Split, others: Iterable[ImageSet]) -> Shared:
    """The images of `split` that are among the others."""
    space, contents = id_space(split.directory), contents_of(split)
    by_id: list[int] = []
    by_content: list[int] = []
    for images in others:
        if space and space == images.ids_of:
            by_id += (i for i in split.ids if i in images.ids)
        if contents is not None and images.contents:
            pairs = zip(split.ids, contents, strict=True)
            by_content += (i for i, content in pairs if content in images.contents)
    return Shared(list(dict.fromkeys(by_id)), list(dict.fromkeys(by_content)))


def save(run: PathLike, images: Sequence[ImageSet]) -> None:
    """Writes `trained_on.npz` into a run directory."""
    arrays = {}
    for number, part in enumerate(images):
        arrays[f"ids_of.{number}"] = np.array(part.ids_of)
        arrays[f"ids.{number}"] = np.array(sorted(part.ids), np.int64)
        arrays[f"contents.{number}"] = np.array(sorted(part.contents), np.uint64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(pathlib.Path(run) / TRAINED_ON, buffer.getvalue())


def load(run: PathLike) -> list[ImageSet] | None:
    """What `save` wrote; None where a run (of an older version) has none.

    Raises:
      UserError: the file is broken.
    """
    path = pathlib.Path(run) / TRAINED_ON
    try:
        with np.load(path) as arrays:
            return [
                ImageSet(
                    str(arrays[f"ids_of.{number}"]),
                    frozenset(arrays[f"ids.{number}"].tolist()),
                    frozenset(arrays[f"contents.{number}"].tolist()),
                )
                for number in range(len(arrays.files) // 3)
            ]
    except FileNotFoundError:
        return None
    except Exception as error:  # of zip, zlib and NumPy there are many kinds
        raise UserError(f"{os.fspath(path)} is broken ({error}); copy it anew") from error
