"""What others wrote: texts and JSON from files that may hold anything.

Every JSON of a user's, of a download or of an earlier run is read here, so that a file that is no
file, no text, no JSON, deeper or longer than anything sensible, ends in one line. `typed` says of
what a value consists, once, where it is read; what comes back needs no further looking.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Annotated, Any, TypeVar, overload

import msgspec

from har_jax.errors import UserError

T = TypeVar("T")

_LARGEST = 1.7976931348623157e308
Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
"""A float that is a number; `typed` refuses NaN and infinities."""
Size = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
"""A count or an offset: no negative one, and none that a float could not hold."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""One half of a character outside the basic plane, as JSON escapes it."""


def check_file(path: str | PathLike[str]) -> None:
    """Refuses what one could wait for, or read, for ever: pipes, sockets and devices. What a shell
    hands over by `<(...)`, and /dev/stdin, were typed by whoever waits.

    Raises:
      OSError: it is one, or nothing is there.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    if not os.fspath(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file")


def read_text(path: str | PathLike[str], what: str) -> str:
    """A text file in UTF-8, with or without a byte-order mark; `what` says in errors what it should
    have been.

    Raises:
      UserError: no such file, one that cannot be read, or not text.
    """
    name = repr(str(path))
    try:
        check_file(path)
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {name}; give {what}") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a directory; give {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not text in UTF-8 (byte {error.start}); convert it, or give {what}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{shortened(name)} cannot be read ({error.strerror}); give {what}"
        ) from None
    except ValueError as error:  # NUL, or half a character, in the name
        raise UserError(f"{name} can be no file's name ({error}); give {what}") from None


def read_json(
    path: str | PathLike[str], what: str, *, halves: bool = False, once: bool = False
) -> Any:
    """The value of a JSON file; `what` as for `read_text`, `halves` and `once` as for `parse_json`.

    Raises:
      UserError: no such file, not JSON, or JSON that nobody means (see `parse_json`).
    """
    return parse_json(read_text(path, what), repr(str(path)), what, halves=halves, once=once)


def parse_json(
    text: str | bytes, where: str, what: str, *, halves: bool = False, once: bool = False
) -> Any:
    """The value of a JSON text; `where` it stands and `what` it should be are for errors.

    Args:
      halves: let texts through that hold half a character (an unpaired surrogate, which no file
        can hold): for readers that drop such a row and count it.
      once: refuse an object that has a key twice, of which Python keeps the last.

    Raises:
      UserError: not JSON; nested too deeply or with numbers too long for Python to read; a text
        with half a character in it.
    """
    try:
        # Strictly, where `json` would let half a character of its own bytes through.
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        if not once and (plain := _plain_json(text)) is not None:
            return plain
        value = json.loads(text, object_pairs_hook=_once if once else None)
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}: {error.msg}"
        raise UserError(f"{where} is not valid JSON ({why}); give {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8 (byte {error.start}); give {what}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; give {what}") from None
    except ValueError as error:  # of integers with thousands of digits; of `_once`
        raise UserError(f"{where} cannot be read ({error}); give {what}") from None
    if not halves and _HALF.search(text) and (half := _half_of(value)):
        raise UserError(
            f"{where} holds {half!r}, which ends in the middle of a character (an unpaired "
            f"surrogate); write it again as UTF-8, or give {what}"
        )
    return value


def _plain_json(text: str) -> Any:
    """The value of JSON with nothing odd in it, in half the time of `json`, which reads it alike;
    None where there is something to be told or forgiven, such as NaN."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shortened(repr(twice))} occurs twice")
    return made


def _half_of(value: Any) -> str:
    """A text in a value of JSON that is no Unicode, shortened; "" without one."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not is_unicode(value):
            return shortened(value)
    return ""


def is_unicode(text: str) -> bool:
    """Whether a text can be written: Python's may hold unpaired surrogates, UTF-8 may not."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@overload
def typed(value: Any, kind: type[T], where: str, fix: str = ...) -> T: ...
@overload
def typed(value: Any, kind: Any, where: str, fix: str = ...) -> Any: ...
def typed(value: Any, kind: Any, where: str, fix: str = "copy or download it again") -> Any:
    """A value of JSON as `kind`: a msgspec.Struct, a dataclass, or a type such as
    `list[dict[str, int]]`. Keys that a struct does not name are passed over.

    Args:
      where: the file, or what else it is part of, for errors.

    Raises:
      UserError: it is not of that kind; the line says which part, what it is and what is needed.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        place = place.strip("`").removeprefix("$").removeprefix(".")
        message = message.replace("`", "").replace("Object ", "").replace("Expected ", "needs ")
        at = f"{where}: {place}" if place else where
        raise UserError(f"{at}: {message}; {fix}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; {fix}") from None


@overload
def read_typed(path: str | PathLike[str], kind: type[T], what: str) -> T: ...
@overload
def read_typed(path: str | PathLike[str], kind: Any, what: str) -> Any: ...
def read_typed(path: str | PathLike[str], kind: Any, what: str) -> Any:
    """`read_json` and `typed` of a file.

    Raises:
      UserError: as these two.
    """
    return typed(read_json(path, what), kind, repr(str(path)), f"give {what}")


def shortened(text: str, most: int = 100) -> str:
    """A text of somebody else's, short enough for a line of ours, and on one line."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def listed(parts: Iterable[str], between: str = ", ", most: int = 3) -> str:
    """The first few of what may be thousands, each shortened, and how many more there are."""
    told = [shortened(part, 150) for part in parts]
    more = f"{between}and {len(told) - most:,} more" if len(told) > most else ""
    return between.join(told[:most]) + more


@dataclasses.dataclass(frozen=True)
class Keys:
    """What the keys of a configuration that others wrote mean here, each of them.

    A key that nobody knows may change what is computed, so it is refused, unless it says nothing:
    null, or an empty list, object or text. Keys that begin with an underscore are notes that
    programs leave for themselves.

    Attributes:
      used: the keys that are read, and of what type each is (as for `typed`).
      fixed: keys that would change what is computed, and the values with which they do not.
      harmless: keys that change nothing of what is computed here, whatever they say.
      why: of keys that are refused, what they mean.
    """

    used: Mapping[str, Any]
    fixed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The keys that are used, those that are there, as their types.

        Raises:
          UserError: one is not of its type, or another key may change what is computed.
        """
        if odd := [
            self._told(key, value) for key, value in values.items() if self._is_odd(key, value)
        ]:
            raise UserError(
                f"{where}: {listed(odd)}: not supported, for it may change what is computed; give "
                "a configuration without it, and what belongs to that"
            )
        fix = "give a configuration as it was saved or downloaded"
        read = {}
        for key, kind in self.used.items():
            if key in values:
                what = f"{where}: {key} is {shortened(repr(values[key]), 60)}"
                read[key] = typed(values[key], kind, what, fix)
        return read

    def _is_odd(self, key: str, value: Any) -> bool:
        if key in self.used or key in self.harmless or key.startswith("_"):
            return False
        return value not in (None, "", [], {}) and value not in self.fixed.get(key, ())

    def _told(self, key: str, value: Any) -> str:
        told = f"{shortened(key, 40)}={shortened(repr(value), 60)}"
        if why := self.why.get(key):
            return f"{told} ({why})"
        plain = " or ".join(map(repr, self.fixed.get(key, ())))
        return f"{told} (only {plain} is)" if plain else f"{told} (a key without a meaning here)"
