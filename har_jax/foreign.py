"""What others wrote: texts and JSON from files that may hold anything.

Every JSON of a user's, of a download or of an earlier run is read here, so that a file that is no
file, no text, no JSON, deeper or longer than anything sensible, ends in one line. `typed` says of
what a value consists, once, where it is read; what comes back needs no further looking.
"""

from __future__ import annotations

import json
import pathlib
import re
from os import PathLike
from typing import Annotated, Any, TypeVar, cast

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


def read_text(path: str | PathLike[str], what: str) -> str:
    """A text file in UTF-8, with or without a byte-order mark; `what` says in errors what it should
    have been.

    Raises:
      UserError: no such file, one that cannot be read, or not text.
    """
    name = repr(str(path))
    try:
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


def read_json(path: str | PathLike[str], what: str, *, halves: bool = False) -> Any:
    """The value of a JSON file; `what` as for `read_text`, `halves` as for `parse_json`.

    Raises:
      UserError: no such file, not JSON, or JSON that nobody means (see `parse_json`).
    """
    return parse_json(read_text(path, what), repr(str(path)), what, halves=halves)


def parse_json(text: str | bytes, where: str, what: str, *, halves: bool = False) -> Any:
    """The value of a JSON text; `where` it stands and `what` it should be are for errors.

    Args:
      halves: let texts through that hold half a character (an unpaired surrogate, which no file
        can hold): for readers that drop such a row and count it.

    Raises:
      UserError: not JSON; nested too deeply or with numbers too long for Python to read; a text
        with half a character in it.
    """
    try:  # of bytes, `json.loads` would let halves of characters through
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text)
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}: {error.msg}"
        raise UserError(f"{where} is not valid JSON ({why}); give {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8 (byte {error.start}); give {what}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; give {what}") from None
    except ValueError as error:  # of integers with thousands of digits
        raise UserError(f"{where} cannot be read ({error}); give {what}") from None
    if not halves and _HALF.search(text) and (half := _half_of(value)):
        raise UserError(
            f"{where} holds {half!r}, which ends in the middle of a character (an unpaired "
            f"surrogate); write it again as UTF-8, or give {what}"
        )
    return value


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
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def typed(value: Any, kind: type[T], where: str, fix: str = "copy or download it again") -> T:
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


def read_typed(path: str | PathLike[str], kind: type[T], what: str) -> T:
    """`read_json` and `typed` of a file.

    Raises:
      UserError: as these two.
    """
    return cast(T, typed(read_json(path, what), kind, repr(str(path)), f"give {what}"))


def shortened(text: str, most: int = 100) -> str:
    """A text of somebody else's, short enough for a line of ours."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."
