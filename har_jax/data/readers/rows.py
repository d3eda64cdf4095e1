"""Rows of anyone's own captions file, whatever its suffix: CSV, JSON lines, or a JSON array.

    image,caption                           a table; commas, semicolons, tabs or bars
    {"image": "a.jpg", "caption": "..."}    an object in each line
    [{"image": "a.jpg", ...}, ...]          all of them in a list (BLIP, LAVIS)

A row that cannot be read is dropped and told; what follows it is read.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import parse_json, shortened
from har_jax.ids import MISSING

Row = tuple[str, dict[str, Any]]
"""(where it stands, its fields)."""
Drop = Callable[[str, str], None]
"""(where, why): what becomes of a row that cannot be read."""

_MOST_LINES = 100  # of a row of a table: a quote that is never closed takes no more than that
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_WORDS = "|".join(map(re.escape, sorted(MISSING)))
_ITEM = re.compile(rf"\s*({_STRING}|{_WORDS})(?:\s*,|\s+|(?=[\])}}]))", re.DOTALL)
_BETWEEN = re.compile(r"[\s,]*\]?\s*")  # entries of a JSON array, and after the last
_ENDS = {"[": "]", "(": ")", "{": "}"}  # of lists, tuples and sets; PostgreSQL's arrays, too
_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_NESTED = re.compile(rf"\[\s*[\[({{]\s*{_STRING}|{{\s*{_STRING}\s*:", re.DOTALL)
"""How a list of lists begins, one of objects, or an object, as Python prints them."""


def json_values(path: object, text: str, what: str, *, halves: bool) -> Iterator[tuple[str, Any]]:
    """(where it stands, value or the error) of a JSON array or of JSON lines.

    Args:
      halves: as for `foreign.parse_json`.

    Raises:
      UserError: an array that is not valid JSON.
    """
    start = text.lstrip()
    if start.startswith("["):
        try:
            values = parse_json(start, f"{path}", what, halves=halves, once=True)
            yield from ((f"{path} entry {number}", value) for number, value in enumerate(values))
            return
        except UserError:
            parse_json(start, f"{path}", what, halves=halves)  # all is well but keys that repeat
        texts = ((f"{path} entry {i}", entry) for i, entry in enumerate(_entries(start)))
    else:  # other line breaks may be in a caption
        texts = ((f"{path} line {i}", line) for i, line in enumerate(text.split("\n"), 1))
    for where, one in texts:
        if one.strip():
            try:
                yield where, parse_json(one, where, what, halves=halves, once=True)
            except UserError as error:
                yield where, error


def _entries(array: str) -> Iterator[str]:
    """The texts of the entries of a valid JSON array."""
    decoder, at = json.JSONDecoder(), 1
    while (at := _BETWEEN.match(array, at).end()) < len(array):  # type: ignore[union-attr]
        _, end = decoder.raw_decode(array, at)
        yield array[at:end]
        at = end


def json_rows(path: object, text: str, what: str, drop: Drop) -> Iterator[Row]:
    """The objects of a JSON array or of JSON lines.

    Raises:
      UserError: it is of a format that another reader knows, or of none.
    """
    _refuse_one_object(path, text, what)
    for where, value in json_values(path, text, what, halves=True):
        if isinstance(value, UserError):
            drop(where, f"{str(value).removeprefix(where).strip()}; is the file cut off?")
        elif not isinstance(value, dict):
            drop(where, f"holds {reprlib.repr(value)}, not an object")
        elif "conversations" in value:
            raise UserError(
                f"{where} holds `conversations` (LLaVA's instructions), which are no captions; "
                f"give {what}"
            )
        else:
            yield where, value


def _refuse_one_object(path: object, text: str, what: str) -> None:
    """Lines are objects each; a file that is a single one is something else."""
    first = text.lstrip().split("\n", 1)[0].rstrip()
    if not first.startswith("{"):
        return
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict) and "images" not in value:
            raise UserError(
                f"{path} is one JSON object with the keys {reprlib.repr(sorted(value))}, not one "
                f"for each image; give {what}"
            ) from None
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        raise UserError(
            f"{path} is in COCO's or Karpathy's format; use `prepare coco` (or `prepare flickr`)"
        )


def table_rows(
    path: object,
    text: str,
    is_header: Callable[[set[str]], bool],
    known: Collection[str],
    suffixes: Sequence[str],
    drop: Drop,
    fix: str = "",
) -> Iterator[Row]:
    """The rows of a table; without a header, of two columns: image and caption.

    Args:
      is_header: whether these names, in lower case, are those of the columns.
      known: names of columns, in lower case, that are read.
      suffixes: of an image's name, which begins each line of a table without header.
      fix: what else than a header may be given.

    Raises:
      UserError: no header, and not such a table; or two columns of one such name.
    """
    lines = list(io.StringIO(text, newline=""))
    start = next((n for n, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines):
        return
    first = lines[start].strip("\r\n")

    def has_header(mark: str) -> bool:
        return is_header({part.strip().strip('"').lower() for part in first.split(mark)})

    delimiter = next(filter(has_header, ",;\t|"), "")
    header = [name.strip() for name in _record(lines, start, delimiter)[0]] if delimiter else []
    if not delimiter:
        delimiter = max(",;\t|", key=first.count)
        values = _record(lines, start, delimiter)[0]
        if len(values) != 2 or not values[0].lower().endswith(tuple(suffixes)):
            raise UserError(
                f"{path} has no header that names an image and a caption column; its first line is "
                f"{first[:80]!a}. Begin it with image,caption{fix}"
            )
    at, names = start + bool(header), header or ["image", "caption"]
    lower = [name.lower() for name in names]
    if twice := sorted({name for name in lower if name in known and lower.count(name) > 1}):
        raise UserError(
            f"{path} has two columns {shortened(twice[0])!r}, of which a row could keep one alone; "
            "give each a name of its own, and a row for each caption"
        )
    while at < len(lines):
        where = f"{path} line {at + 1}"
        values, size, why = _record(lines, at, delimiter)
        while len(values) > len(names) and not values[-1].strip():  # a mark at the end of each line
            values.pop()
        if not why and values and len(values) != len(names):
            why = f"has {len(values)} columns, the header {len(names)}; quote captions that hold "
            why += f"{delimiter!r}; is the file cut off?"
        if why:  # the next line may be one of its own, whatever a stray quote says
            drop(where, why)
            size = 1
        elif values:
            yield where, dict(zip(names, values, strict=True))
        at += size


def _record(lines: Sequence[str], at: int, delimiter: str) -> tuple[list[str], int, str]:
    """(values, how many lines they take, why it is none)."""
    own = (lines[n] for n in range(at, min(at + _MOST_LINES, len(lines))))
    reader = csv.reader(own, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        return next(reader), reader.line_num, ""
    except csv.Error as error:
        if " expected after " in str(error) and reader.line_num == 1:
            # "Stop" says a sign: a quotation, not a cell in quotes.
            cells = lines[at].rstrip("\r\n").split(delimiter)
            return [cell.lstrip(" ") for cell in cells], 1, ""
        return [], 1, f"cannot be read ({error}); is the file cut off within a quoted caption?"


def texts_of(cell: str) -> list[Any]:
    """The captions in a cell of a table: one, or those of a list that was written into it, as JSON
    or as Python, NumPy or a database print it. None stands for what is missing, and what is no text
    but an object or a list of them is none here either."""
    text = cell.strip()
    if text in MISSING:
        return [None]
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    if len(text) < 2 or _ENDS.get(text[0]) != text[-1]:
        return [cell]
    try:
        found = parse_json(text, "", "", halves=True)
    except UserError:
        found = _printed(text)
        if found is None and _NESTED.match(text):
            return [[text]]
    if isinstance(found, dict):
        return [found]
    return (found or [None]) if isinstance(found, list) else [cell]


def _printed(text: str) -> list[Any] | None:
    """A list of texts as Python (with commas) or NumPy (without) prints it; None if it is none."""
    found: list[Any] = []
    at, inner = 1, len(text) - 1
    while (match := _ITEM.match(text, at)) is not None:
        if match[1] in MISSING:
            found.append(None)
        else:
            try:
                found.append(ast.literal_eval(match[1]))
            except (ValueError, SyntaxError):  # an escape that is none
                return None
        at = match.end()
    if text[at:inner].strip() or (text[0] == "(" and "," not in text):  # ("Stop") is no tuple
        return None
    return found
