"""What is made in long work: locked, written shard by shard, continued, published by one rename.

    .NAME.partial/lock-0-of-1       held (fcntl) by the process that writes part 0 of 1
    .NAME.partial/key.json          what it was begun with
    .NAME.partial/shards/SHARD      a finished shard
    .NAME.partial/shards/SHARD.json its record, written after it: where that is, the shard is whole
    .NAME.partial/whole             the result under its final names, just before it is renamed
    .NAME.partial/old               what it replaces, while it does

Datasets (`data.builder`) and feature caches (`data.features.build`) are made so. The shards are
known beforehand and each depends on nothing but itself, so what a continued run makes equals, byte
for byte, what an unbroken one makes; and of several processes on one file system each can write
some of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.files import followed, is_open_as, lock, plain, write_json
from har_jax.foreign import read_json

_KEY, _FINISHING = "key.json", "lock-finish"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


class _Finished(UserError):
    """Another process has published the result."""


class Staged:
    """The place beside `out` where it is made.

    Attributes:
      out: the final directory, or file.
      what: such as "dataset", for errors.
      mark: a file that every directory of this kind holds; "" where `out` is a file.
      resumes: whether what is finished is kept when the work is broken off.
      path: of the place.
      whole: where `finish` expects the result, under its final names.
    """

    def __init__(self, out: str | os.PathLike[str], what: str, mark: str, *, resumes: bool = True):
        self.out, self.what, self.mark, self.resumes = followed(out), what, mark, resumes
        final = self.out.absolute()
        self.path = final.with_name(f".{final.name}.partial")
        self.whole = self.path / "whole"
        self._old, self._shards = self.path / "old", self.path / "shards"

    def check_free(self, *, overwrite: bool) -> None:
        """
        Raises:
          UserError: something is at `out` that must not be replaced.
        """
        check_free(self.out, self.what, self.mark, overwrite=overwrite)

    @contextlib.contextmanager
    def locked(self, part: tuple[int, int] = (0, 1)) -> Iterator[None]:
        """Held while part i of n is written; what breaks it off is told in a line.

        Raises:
          UserError: another process writes this part, nothing can be written there, or the disk is
            full or broken.
        """
        name = "lock-{}-of-{}".format(*part)
        try:
            held = self._lock(name)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {self.out} (it holds {self.path}); wait for it, or "
                "choose another --out"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write {self.out}: {error.strerror}; choose another --out"
            ) from error
        kept = f"what is finished is kept in {self.path}" if self.resumes else "nothing is kept"
        try:
            with self._finishing():
                self._put_back()
            yield
        except KeyboardInterrupt:
            again = "; the same command continues" if self.resumes else ""
            raise KeyboardInterrupt(kept + again) from None
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise UserError(
                f"cannot write {self.out}: {error.strerror}; {kept}: make room and give the same "
                "command again"
            ) from error
        finally:
            own = is_open_as(held, self.path / name)  # not one begun after this was published
            if own and not (self.resumes and (self.path / _KEY).exists()):
                self.forget()
            os.close(held)

    def begin(self, key: Mapping[str, Any], *, anew: bool) -> str:
        """Keeps the shards that were begun with the same key.

        Args:
          key: {name: value} of all that decides what is written.
          anew: start anew where another key is found.

        Returns:
          "begun", "continued", or "cleared" where there was another key.

        Raises:
          UserError: there is another key, and not `anew`.
        """
        key, found = plain(key), None
        with self._finishing():
            if (self.path / _KEY).exists():
                found = read_json(self.path / _KEY, f"the key of an unfinished {self.what}")
                if found == key and self.resumes:
                    return "continued"
                if not anew:
                    other = [name for name in key if found.get(name) != key[name]]
                    raise UserError(
                        f"{self.path} is an unfinished {self.what} with another "
                        f"{' and '.join(other)}; remove it, pass --overwrite, or choose another "
                        "--out"
                    )
            # Without a key, a kill from here on leaves nothing to continue.
            (self.path / _KEY).unlink(missing_ok=True)
            for place in (self._shards, self.whole):
                _remove(place)
            self._shards.mkdir()
            write_json(self.path / _KEY, key)
        return "begun" if found is None else "cleared"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        """Yields where to write a shard, and its record, to be filled (JSON-able).

        Nothing is left of the shard if the block raises.
        """
        path, record = self._shards / f"{name}.{os.getpid()}.partial", {}
        try:
            yield path, record
            with path.open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            index = self._shards / f"{name}.json"
            index.unlink(missing_ok=True)
            os.replace(path, self._shards / name)
            write_json(index, {"bytes": size, "record": record}, None)
        finally:
            path.unlink(missing_ok=True)

    def growing(self, name: str) -> pathlib.Path:
        """A file that grows where the shards are: it goes with them when the work begins anew."""
        return self._shards / name

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished shard, or None."""
        file = self._shards / name
        try:
            index = read_json(self._shards / f"{name}.json", "the record of a shard")
        except UserError:
            return None
        # While shards move to their final names all are finished, wherever they are.
        whole = file.exists() and file.stat().st_size == index["bytes"]
        return index["record"] if whole or self.whole.exists() else None

    def move(self, name: str, final: str) -> None:
        """Gives a shard its name in `whole`, unless a kill broke this off and it has it."""
        if not (self.whole / final).exists():
            os.replace(self._shards / name, self.whole / final)

    def finish(self, arrange: Callable[[], None], *, overwrite: bool) -> None:
        """Publishes the result, unless another process has just done so.

        Args:
          arrange: makes `whole`, or what is lacking of it, of the shards.

        Raises:
          UserError: something has come to be at `out` meanwhile.
        """
        with contextlib.suppress(_Finished), self._finishing():
            arrange()
            self.check_free(overwrite=overwrite)
            replaced = self.out.exists() and not _empty(self.out)
            if replaced:
                os.rename(self.out, self._old)
            try:
                os.rename(self.whole, self.out)
            except OSError as error:
                self._put_back()
                raise UserError(
                    f"{self.out} came into being while the {self.what} was written "
                    f"({error.strerror}); is something else writing there?"
                ) from error
            self.forget()

    def forget(self) -> None:
        """Removes all that is not published."""
        # Under another name, since the next process may begin here as soon as the lock is gone.
        gone = self.path.with_name(f"{self.path.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.rename(self.path, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _put_back(self) -> None:
        """Undoes a replacement that a kill broke off between its two renames."""
        if self._old.exists():
            if self.out.exists():
                _remove(self._old)
            else:
                os.rename(self._old, self.out)

    @contextlib.contextmanager
    def _finishing(self) -> Iterator[None]:
        """Held by one of the processes that write parts, while it begins or finishes."""
        held = self._lock(_FINISHING, wait=True)
        try:
            yield
        finally:
            os.close(held)

    def _lock(self, name: str, *, wait: bool = False) -> int:
        """A locked handle; the system lets it go if the process dies."""
        while True:
            if not wait:
                self.path.mkdir(parents=True, exist_ok=True)
            try:
                return lock(self.path / name, wait=wait)
            except FileNotFoundError:  # the holder has just finished and removed the directory
                if wait:
                    raise _Finished(f"another process has just finished {self.out}") from None


def check_free(out: str | os.PathLike[str], what: str, mark: str, *, overwrite: bool) -> None:
    """Raises UserError where something is at `out` that must not be replaced; see `Staged`."""
    out = followed(out, replaced=True)
    if not out.exists() or _empty(out):
        return
    if mark and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a directory")
    if not overwrite:
        there = "exists and is not empty" if mark else "exists"
        raise UserError(f"{out} {there}; choose another --out or pass --overwrite")
    if mark and not (out / mark).exists():
        raise UserError(f"{out} is not a {what}; --overwrite replaces {what}s only")


def _empty(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
