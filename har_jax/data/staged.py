"""The directory in which a dataset is made, kept when its making is broken off.

    .NAME.partial/lock                 held (fcntl) by the process that writes here
    .NAME.partial/key                  what it was begun with; another key starts anew
    .NAME.partial/shards/SPLIT-00003   ArrayRecord file
    .NAME.partial/shards/SPLIT-00003.json   its index, written after it: where that is, it is whole
    .NAME.partial/dataset/             the files under their final names, just before it is renamed
    .NAME.partial/old/                 the dataset that it replaces, while it does

A shard is a stretch of the list of images that is known beforehand, so what a continued run writes
equals, byte for byte, what an unbroken one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from har_jax.data.dataset import Example
from har_jax.data.records import RecordFile
from har_jax.errors import UserError
from har_jax.files import write_bytes


@dataclasses.dataclass
class Shard:
    """The index of a finished shard.

    Attributes:
      images: `id`, `file_name`, `sha256` of the encoded bytes, and `domain` where there is one.
      annotations: `id`, `image_id`, `caption`, in the order of the images.
      num_bytes: of the records.
      file_bytes: of the file.
      extra: whatever its maker wants to find again (what was dropped).
    """

    split: str
    number: int
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    num_bytes: int = 0
    file_bytes: int = 0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Partial:
    """An open, locked `.NAME.partial`; made by `open_partial`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.dataset, self.old = path / "dataset", path / "old"
        self._shards = path / "shards"

    def file(self, shard: Shard) -> pathlib.Path:
        """The ArrayRecord file of a shard that is not yet under its final name."""
        return self._shards / f"{shard.split}-{shard.number:05d}"

    def begin(self, key: str) -> str | None:
        """Keeps what is there if it was begun with the same key, else clears it.

        Returns:
          "continued" or "cleared", or None where nothing was there.
        """
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = (self.path / "key").read_text()
        if found == key:
            return "continued"
        # Without a key, a kill from here on leaves nothing to continue.
        (self.path / "key").unlink(missing_ok=True)
        for place in (self._shards, self.dataset):
            if place.exists():
                shutil.rmtree(place)
        self._shards.mkdir()
        write_bytes(self.path / "key", key.encode())
        return None if found is None else "cleared"

    def put_back(self, directory: pathlib.Path) -> None:
        """Undoes a replacement that a kill broke off between its two renames."""
        if self.old.exists():
            if directory.exists():
                shutil.rmtree(self.old, ignore_errors=True)
            else:
                os.rename(self.old, directory)

    def finished(self, split: str, number: int) -> Shard | None:
        """A shard that was written whole before, or None."""
        path = self._shards / f"{split}-{number:05d}.json"
        try:
            shard = Shard(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        # While files move to their final names all shards are finished, wherever they are.
        file = self.file(shard)
        moving = self.dataset.exists()
        whole = file.exists() and file.stat().st_size == shard.file_bytes
        return shard if whole or moving else None

    def forget(self) -> None:
        """Removes all of it."""
        # Under another name, since the next process may begin here as soon as the lock is gone.
        gone = self.path.with_name(f"{self.path.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.rename(self.path, gone)
            shutil.rmtree(gone, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, split: str, number: int) -> Iterator[ShardWriter]:
        """Writes a shard; nothing is left of it if the block raises."""
        writer = ShardWriter(self, split, number)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.abandon()
            raise


class ShardWriter:
    """One shard being written."""

    def __init__(self, partial: Partial, split: str, number: int):
        self.shard = Shard(split, number, [], [])
        self._path = partial.file(self.shard)
        self._index = self._path.with_name(self._path.name + ".json")
        self._index.unlink(missing_ok=True)
        self._file = RecordFile(self._path)

    def __len__(self) -> int:
        return len(self.shard.images)

    def add(self, example: Example, caption_ids: Sequence[int], *, domain: str = "") -> None:
        self._file.add(example, caption_ids)
        image = {
            "id": example.image_id,
            "file_name": example.filename,
            "sha256": hashlib.sha256(example.image).hexdigest(),
        }
        self.shard.images.append(image | ({"domain": domain} if domain else {}))
        self.shard.annotations += [
            {"id": i, "image_id": example.image_id, "caption": caption}
            for i, caption in zip(caption_ids, example.captions, strict=True)
        ]

    def finish(self) -> Shard:
        self._file.close()
        self.shard.num_bytes = self._file.num_bytes
        self.shard.file_bytes = self._path.stat().st_size
        write_bytes(self._index, json.dumps(vars(self.shard)).encode())
        return self.shard

    def abandon(self) -> None:
        self._index.unlink(missing_ok=True)
        self._file.abandon()


def partial_path(directory: pathlib.Path) -> pathlib.Path:
    directory = directory.absolute()
    return directory.parent / f".{directory.name}.partial"


@contextlib.contextmanager
def open_partial(directory: pathlib.Path) -> Iterator[Partial]:
    """Locks the place where `directory` is made; a second process is refused at once.

    Raises:
      UserError: another process writes there, or nothing can be written there.
    """
    path = partial_path(directory)
    try:
        lock = _lock(path)
    except BlockingIOError:
        raise UserError(
            f"another `prepare` is writing {directory} (it holds {path}); wait for it, or choose "
            "another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror}; choose another --out"
        ) from error
    partial = Partial(path)
    try:
        partial.put_back(directory)
        yield partial
    finally:
        if not (path / "key").exists():
            partial.forget()
        os.close(lock)


def _lock(path: pathlib.Path) -> int:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "lock"
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the holder has just finished and removed the directory
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(handle, file):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: pathlib.Path) -> bool:
    """Whether the file that was locked is still the one under that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
