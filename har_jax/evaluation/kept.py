"""Captions that are kept as they are written, so that a killed run goes on where it was.

OUT/captions.jsonl    {"key": ...}, then of each image
                      {"image_id": 1, "caption": "...", "ended": true, "seconds": 1.5}
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec

from har_jax.data.protocols import Images, Part, Writer, Written
from har_jax.errors import UserError
from har_jax.files import plain
from har_jax.foreign import Finite, parse_json, typed

NAME = "captions.jsonl"


class _Head(msgspec.Struct):
    key: dict[str, Any]


class _Row(msgspec.Struct):
    image_id: int
    caption: str
    ended: bool
    seconds: Finite


@dataclasses.dataclass
class KeptWriter:
    """A writer whose captions are kept; a `data.protocols.Writer` itself.

    What an image is written about must not depend on the images before it.

    Attributes:
      path: the file that holds them.
      key: what decides the captions beside the images: settings, weights, seed. JSON-able.
      seconds: that the captions yielded so far took, in this process and in those before it.
    """

    writer: Writer
    path: pathlib.Path
    key: Mapping[str, Any]
    seconds: float = 0.0

    def check(self, images: Images) -> None:
        """Raises what `write` would raise at its beginning."""
        if self.path.exists():
            with self._opened() as file:
                self._known(file, images)

    def write(self, images: Images) -> Iterator[Written]:
        """What is kept already, then what the writer writes about the other images.

        Raises:
          UserError: the file holds captions of other settings or images, is in use by another
            process, or cannot be written.
        """
        with self._opened() as file:
            known = self._known(file, images)
            yield from known
            last = time.monotonic()
            rest = Part(images, len(known), len(images))
            if not len(rest):
                return
            for image_id, found in zip(rest.ids, self.writer.write(rest), strict=True):
                took, last = time.monotonic() - last, time.monotonic()
                self.seconds += took
                row = {"image_id": image_id, "caption": found.text, "ended": found.ended}
                _append(file, {**row, "seconds": round(took, 4)})
                yield found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
        except BlockingIOError:
            raise UserError(
                f"another process is writing {self.path}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); choose another --out"
            ) from error

    def _known(self, file: IO[bytes], images: Images) -> list[Written]:
        """The captions of the file; a line that a kill cut off is removed from it."""
        file.seek(0)
        lines = file.read().split(b"\n")
        whole = lines[:-1]
        file.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            _append(file, {"key": self.key})
            return []
        try:
            what = "captions as they were kept"
            head, *found = (parse_json(line, f"a line of {self.path}", what) for line in whole)
            key = typed(head, _Head, f"the first line of {self.path}").key
            rows = [typed(row, _Row, f"a line of {self.path}") for row in found]
        except UserError as error:
            raise UserError(
                f"{self.path} is not a file of kept captions ({error}); remove it, or choose "
                "another --out"
            ) from None
        ids = [row.image_id for row in rows]
        known = [Written(row.caption, row.ended) for row in rows]
        self.seconds = sum(row.seconds for row in rows)
        if key != plain(self.key):
            raise UserError(
                f"{self.path} holds captions that were written with other settings "
                f"({_difference(key, plain(self.key))}); choose another --out, or remove it"
            )
        if ids != list(images.ids[: len(ids)]):
            raise UserError(
                f"{self.path} holds captions of other images; choose another --out, or remove it"
            )
        return known


def _append(file: IO[bytes], row: Mapping[str, Any]) -> None:
    file.write(json.dumps(plain(row)).encode() + b"\n")
    file.flush()


def _difference(old: Any, new: Any) -> str:
    """The first setting that differs: `beams 5 there, 3 here`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                inner = _difference(old.get(name), new.get(name))
                return inner if isinstance(new.get(name), Mapping) else f"{name} {inner}"
    return f"{old!r} there, {new!r} here"
