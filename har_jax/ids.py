"""Ids of images as people write them: one reading for all files, and numbers that devices hold.

An id is a whole number or a name. 12, 12.0, "12", "12.0" and "000012" are one id, whatever file
each stands in; "img_0" is a name. Devices hold ids in 32 bits, so that names, and numbers of more
than 31 bits, get a number that is made from them (`numbered`).
"""

from __future__ import annotations

import hashlib
import math
import numbers
import operator
import posixpath
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any, TypeGuard

from har_jax.errors import UserError

Id = int | str
"""What `read_id` makes of a written id."""

MISSING = frozenset(("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT"))
"""What tools write into a table where there is nothing."""

_WHOLE = re.compile(r"\+?0*([0-9]+)(?:\.0*)?")
# Without the sign, 1e3 may as well be one of hexadecimal ids.
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-][0-9]{1,3})?")
_LONGEST = 1000  # characters of an id
_COCO = re.compile(r"COCO_[a-z]+[0-9]{4}_([0-9]{12})")  # images of COCO 2014; 2017's: the number
_EXACT = 2**53  # from here on a float may be the neighbour of what was meant


class NoId(UserError):
    """Something that is no id; the line says why."""


def read_id(value: Any) -> Id:
    """The id that a value of a table, of JSON or of NumPy means.

    Raises:
      NoId: it is none: a fraction, a negative number, nothing, or not of a kind that an id has.
    """
    if is_plain(value):
        return value
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return _of_float(float(value), value)
    try:
        number = operator.index(value)
    except TypeError:
        raise NoId(f"the id is no number and no text but {reprlib.repr(value)}") from None
    if isinstance(value, bool):
        raise NoId(f"the id is {value}")
    if number < 0:
        raise NoId(f"the id is the negative number {reprlib.repr(value)}")
    if number.bit_length() > 3 * _LONGEST:
        raise NoId(f"the id is a number of more than {_LONGEST} digits")
    return number


def is_plain(value: Any) -> TypeGuard[int]:
    """Whether an id needs no reading, as nearly all of COCO's, whose files hold 100,000s."""
    return type(value) is int and 0 <= value < _EXACT


def read_number(value: Any) -> int:
    """The id of an image of a dataset or a batch, which is a number.

    Raises:
      NoId: it is none, or a name.
    """
    found = read_id(value)
    if isinstance(found, str):
        raise NoId(f"the id is the name {reprlib.repr(found)}; give the image's number")
    return found


def number_in(name: str) -> int | None:
    """The number that a file is named by, as `COCO_val2014_000000000139.jpg` and `139.png` are."""
    stem = stem_of(posixpath.basename(name))
    if len(stem) < 16 and stem.isascii() and stem.isdigit():
        return int(stem)
    if coco := _COCO.fullmatch(stem):
        return int(coco[1])
    if not stem.isdigit():
        return None
    try:
        number = read_id(stem)
    except NoId:
        return None
    return number if isinstance(number, int) else None


def stem_of(file: str) -> str:
    """The name of a file, of no folder, without its suffix; ".hidden" and "3." have none."""
    at = file.rfind(".")
    return file[:at] if 0 < at < len(file) - 1 else file


def _of_text(value: str) -> Id:
    text = unicodedata.normalize("NFC", value.strip())
    if not text or text in MISSING:
        raise NoId(f"the id is {reprlib.repr(value)}")
    if len(text) > _LONGEST or re.search("[\ud800-\udfff]", text):
        raise NoId(f"the id is no text of at most {_LONGEST} characters but {reprlib.repr(value)}")
    if match := _WHOLE.fullmatch(text):
        return int(match[1])
    if _FLOAT.fullmatch(text):
        return _of_float(float(text), value)
    return text


def _of_float(number: float, value: Any) -> int:
    if not math.isfinite(number) or number != int(number):
        raise NoId(f"the id is {reprlib.repr(value)}, which is no whole number")
    if not 0 <= number < _EXACT:
        raise NoId(f"the id is {reprlib.repr(value)}; write it as a whole number of at least 0")
    return int(number)


def numbered(ids: Iterable[Id]) -> dict[Id, int]:
    """A number of 31 bits for each id, its own where it is one.

    Of the others it depends on the id alone, save where two meet (a few of 100,000): the later one
    in the alphabet then gets the next number of its own.
    """
    distinct = set(ids)
    found: dict[Id, int] = {i: i for i in distinct if isinstance(i, int) and i < 2**31}
    taken = set(found.values())
    for name, written in sorted((str(i), i) for i in distinct if i not in found):
        attempt = 0
        while (number := hashed(f"id {attempt}", name, 31)) in taken:
            attempt += 1
        taken.add(number)
        found[written] = number
    return found


def hashed(purpose: str, name: str, bits: int) -> int:
    """A number of so many bits that depends on a name, another one for each purpose."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)
