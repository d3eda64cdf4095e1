"""JSON on disk that is always valid and never half-written, lines of our own logs, and locks.

`foreign.py` reads what others wrote.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import msgspec

from har_jax.errors import UserError


def plain(value: Any) -> Any:
    """What JSON can hold: numpy scalars become Python's, NaN and infinities (not JSON) None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON of what `plain` understands."""
    settings: dict[str, Any] = dict(indent=indent, ensure_ascii=False, allow_nan=False)
    try:  # hardly ever is there anything to convert, and looking takes longer than writing
        return json.dumps(value, **settings)
    except (TypeError, ValueError):
        return json.dumps(plain(value), **settings)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces `path` in one step: a reader sees the old file or the whole new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's 0600 would hide the result from others
        os.replace(partial, path)
    except BaseException:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise


def followed(path: str | os.PathLike[str], *, replaced: bool = False) -> pathlib.Path:
    """Where something is to be written: a symbolic link is followed, also one to nothing yet.

    Ask before the work: one cannot rename onto a link, nor, where what is made appears by a rename
    (`replaced`), onto a mount point.

    Raises:
      UserError: a circle of links, or a mount point.
    """
    place = pathlib.Path(path)
    if place.is_symlink():
        place = pathlib.Path(os.path.realpath(place))
        if place.is_symlink():
            raise UserError(f"{path} is a symbolic link in a circle of links; give another path")
    if replaced and os.path.ismount(place):
        raise UserError(
            f"{path} is a mount point, and what is made appears by a rename, which cannot replace "
            "one; give a directory below it"
        )
    return place


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    """Writes what `plain` understands, in one step, to be read by people: with `indent` spaces for
    each level, or all in one line."""
    try:  # five times as fast as json, which indents in Python
        data = msgspec.json.encode(value, enc_hook=_known)
    except TypeError:  # such as a key that is None
        data = msgspec.json.encode(plain(value), enc_hook=_known)
    write_bytes(path, msgspec.json.format(data, indent=indent or 0) + b"\n")


def _known(value: Any) -> Any:
    for kind in (str, int, float):
        if isinstance(value, kind):  # of a class of its own
            return kind(value)
    found = plain(value)
    if found is value or isinstance(value, list | tuple):  # a tuple that is a key
        raise TypeError(f"JSON cannot hold {value!r:.80}, a {type(value).__name__}")
    return found


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a `.jsonl`; [] without such a file. A line that a kill cut off is left out."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = (parse_line(line) for line in text.splitlines())
    return [row for row in rows if row is not None]


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """One line of a log of ours, or None if it is not one whole object with a step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step < 2**53 else None


def lock(path: pathlib.Path, *, wait: bool = False) -> int:
    """A locked handle of a file, which is made if need be. The system lets it go if the process
    dies; `os.close` does before. Who holds it may remove the file.

    Raises:
      BlockingIOError: another process holds it, and not `wait`.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if is_open_as(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # of a file that its holder has just removed


def is_open_as(handle: int, path: pathlib.Path) -> bool:
    """Whether an open file is still the one under that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
