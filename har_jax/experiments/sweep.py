"""The directory of sweeps: where each part is, which are finished, and who may work there.

    OUT/mle-0/            a part's directory, under its readable name
    OUT/mle-0-1a2b3c4d/   another part of that name: other settings, so the name ends in its hash
    OUT/mle-0/eval/test/  a part inside another
    OUT/parts/mle-0.json  the record of a part: its hash, settings, parents, command, and whether it
                          is finished (mle-0/eval/test.json of one inside)
    OUT/parts/lock        held (fcntl) by the process that works in OUT

Records stand beside the directories because `train` takes an empty directory or a run, and because
one look at them tells which parts exist: a part is looked up by its hash, so sweeps share what they
have in common. A record is written before its command starts, and says "finished" after it. Killed
in between, the same command is given again, and the part continues in its own directory.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from har_jax.errors import UserError
from har_jax.experiments.parts import Part, content_of
from har_jax.experiments.runs import run_command
from har_jax.files import lock, write_json
from har_jax.foreign import read_json
from har_jax.version import __version__

RECORDS = "parts"
_SHORT = 8  # digits of a hash in a directory's name


class Sweep:
    """Makes parts in `out`, and finds those that are there. Open it with `open_sweep`."""

    def __init__(self, out: str | os.PathLike[str], *, dry_run: bool = False):
        self.out, self.dry_run = pathlib.Path(out), dry_run
        self._content: dict[str, str] = {}
        self._planned: set[str] = set()  # digests of what a dry run has printed
        self._names: dict[str, str] = {}  # digest → the directory, relative to `out`
        records = self.out / RECORDS
        for file in sorted(records.rglob("*.json")):
            digest = read_json(file, "the record of a part").get("hash", "")
            self._names[digest] = file.relative_to(records).with_suffix("").as_posix()

    def make_all(self, parts: Sequence[Part], prepare: Callable[[], None]) -> None:
        """Makes parts, in their order.

        Args:
          prepare: makes what they read, once it is clear that their settings can be.

        Raises:
          UserError: settings contradict each other, or a place holds something else; both are
            found out before the first part is made.
        """
        for part in parts:
            part.check()
        prepare()
        for part in parts:
            self.place(part)
        for part in parts:
            self.make(part)

    def make(self, part: Part) -> pathlib.Path:
        """Makes a part, and before it what it starts from, unless it is finished.

        Raises:
          UserError: its place holds something else.
        """
        for parent in part.parents.values():
            self.make(parent)
        place = self.place(part)
        if self.finished(part):
            return place
        words, file = part.words(self.place), self._record(part)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        before = read_json(file, "the record of a part") if file.exists() else {}
        record = {
            "hash": self._digest(part),
            **part.identity(self._content_of),
            "made_by": f"har_jax {__version__}",
            "typed": f"python -m har_jax.{part.command} {shlex.join(words)}",
            "begun": before.get("begun", now),
            "finished": False,
        }
        self._planned.add(record["hash"])
        if not self.dry_run:
            write_json(file, record)
        run_command(part.command, *words, dry_run=self.dry_run)
        if not self.dry_run:
            if not (place / part.result).exists():
                raise RuntimeError(f"{record['typed']} left no {place / part.result}")
            write_json(file, record | {"finished": True})
        return place

    def finished(self, part: Part) -> bool:
        """Whether its record says so, and the result is there; in a dry run also once printed."""
        if self.dry_run and self._digest(part) in self._planned:
            return True
        file = self._record(part)
        if not file.exists() or not (self.place(part) / part.result).exists():
            return False
        return read_json(file, "the record of a part").get("finished") is True

    def place(self, part: Part) -> pathlib.Path:
        """The directory of a part: where one with its digest is, or where it is going to be.

        Raises:
          UserError: the place holds something else.
        """
        digest = self._digest(part)
        if digest not in self._names:
            for parent in part.parents.values():
                self.place(parent)  # in the order in which they are made
            above = self.place(part.inside).relative_to(self.out) if part.inside else "."
            name = (pathlib.PurePosixPath(above) / part.name).as_posix()
            if name in self._names.values():
                name = f"{name}-{digest[:_SHORT]}"
            self._check_free(name)
            self._names[digest] = name
        return self.out / self._names[digest]

    def places(self, parts: Iterable[Part]) -> list[pathlib.Path]:
        return [self.place(part) for part in parts]

    def name(self, part: Part) -> str:
        """The directory of a part, relative to `out`."""
        return self.place(part).relative_to(self.out).as_posix()

    def _check_free(self, name: str) -> None:
        place = self.out / name
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(
                f"{place} is there, but {self.out / RECORDS} has no record of it: it was made by "
                "hand or by an older version; move it away, or choose another --out"
            )

    def _record(self, part: Part) -> pathlib.Path:
        return self.out / RECORDS / f"{self.name(part)}.json"

    def _digest(self, part: Part) -> str:
        return part.digest(self._content_of)

    def _content_of(self, path: str) -> str:
        """Read once: a sweep's inputs do not change under it."""
        if path not in self._content:
            self._content[path] = content_of(path)
        return self._content[path]


@contextlib.contextmanager
def open_sweep(out: str | os.PathLike[str], *, dry_run: bool = False) -> Iterator[Sweep]:
    """The sweeps of `out`, for this process alone; a dry run only looks.

    Raises:
      UserError: another process works there, or nothing can be written there.
    """
    if dry_run:
        yield Sweep(out, dry_run=True)
        return
    handle = _lock(pathlib.Path(out) / RECORDS / "lock", out)
    try:
        yield Sweep(out)
    finally:
        os.close(handle)  # the system does the same where the process dies


def _lock(file: pathlib.Path, out: str | os.PathLike[str]) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return lock(file)
    except BlockingIOError:
        raise UserError(
            f"another reproduce works in {out} (it holds {file}); wait for it, or choose another "
            "--out"
        ) from None
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot write there ({error.strerror}); give another directory"
        ) from None
