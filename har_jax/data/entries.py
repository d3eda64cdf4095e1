"""What readers of captions return: images by name with their captions; and what they dropped."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import posixpath
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from har_jax import ids
from har_jax.errors import UserError
from har_jax.foreign import is_unicode, shortened
from har_jax.ids import Id

SPLIT_NAME = r"[a-z][a-z0-9_]*"
_LISTED = 5  # offenders of each kind that are named
_FEW = 9  # malformed rows for each good one, from which on a file is refused


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of an annotation file, not yet looked for on disk.

    Attributes:
      split: which split it belongs to.
      written: its id as the file has it, or its name where the file has none; unique.
      names: file names to look for in each image folder, best first; () where none is known.
      captions: (caption id or None, text).
      filename: the image's name in the dataset; by default the last part of the first name.
      domain: nocaps' "in-domain", "near-domain" or "out-domain"; "" elsewhere.
      source: in a file that `prepare` wrote: the id that the image had before, if it was another.
      image_id: a number of 31 bits (`numbered`), which is `written` where that is one.
    """

    split: str
    written: Id
    names: tuple[str, ...]
    captions: tuple[tuple[int | None, Any], ...]
    filename: str = ""
    domain: str = ""
    source: Id | None = None
    image_id: int = -1

    def __post_init__(self) -> None:
        if not self.filename and self.names:
            object.__setattr__(self, "filename", posixpath.basename(self.names[0]))

    @property
    def source_id(self) -> Id | None:
        """What the image was called where it came from; None where that says nothing new."""
        own = self.written if self.source is None else self.source
        return None if own in (self.image_id, self.filename) else own

    def __str__(self) -> str:
        return f"{self.names[0]} (id {self.written})" if self.names else f"image {self.written}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """All that the annotation files of one dataset say.

    Attributes:
      ids: the id space: two datasets of the same one name the same image by the same id ("coco",
        "flickr30k"); "" where ids mean nothing outside of the dataset.
      notes: what a person should know of these files, a line each.
    """

    entries: list[Entry]
    ids: str
    notes: tuple[str, ...] = ()


class Malformed(ValueError):
    """Part of a file that is not as it should be; the text says what it is."""


class Problems:
    """What was dropped, by kind, with some examples of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = collections.defaultdict(int)
        self.examples: dict[str, list[str]] = collections.defaultdict(list)
        self.wanted: set[str] = set()  # kinds that were asked for, which strict allows

    def add(self, kind: str, example: object, *, wanted: bool = False) -> None:
        self.counts[kind] += 1
        if wanted:
            self.wanted.add(kind)
        if len(self.examples[kind]) < _LISTED:
            self.examples[kind].append(printable(str(example)))

    def lines(self) -> list[str]:
        """One line per kind: how many, and the first few."""
        return [self._line(kind) for kind in self.counts]

    def _line(self, kind: str) -> str:
        named, count = "; ".join(self.examples[kind]), self.counts[kind]
        more = f"; and {count - _LISTED} more" if count > _LISTED else ""
        return f"{count} {kind}: {named}{more}"

    def told(self) -> str:
        """All kinds that were not asked for, in one short line; "" without any."""
        kinds = [kind for kind in self.counts if kind not in self.wanted]
        return shortened(" | ".join(map(self._line, kinds)), 700)

    def refuse(self, hint: str = "") -> None:
        """Raises UserError when anything was dropped that was not asked for."""
        if told := self.told():
            raise UserError(f"strict drops nothing, but there are {told}{hint}")

    def to_json(self) -> dict[str, Any]:
        return {
            kind: {"count": n, "examples": self.examples[kind], "wanted": kind in self.wanted}
            for kind, n in self.counts.items()
        }

    def merge(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds what another's `to_json` gave."""
        for kind, value in values.items():
            self.counts[kind] += value["count"]
            room = _LISTED - len(self.examples[kind])
            self.examples[kind] += value["examples"][: max(0, room)]
            if value["wanted"]:
                self.wanted.add(kind)


def printable(text: str) -> str:
    """A text of somebody else's for a line of ours: short, and without line breaks."""
    text = shortened(text, 200)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def refuse_useless(path: object, good: int, count: int, why: str, give: str) -> None:
    """Raises UserError where a file has hardly a row that can be used: it is not what it was taken
    for, or badly damaged.

    Args:
      good, count: rows that can be used, and all of them.
      why: what is wrong with the first of the others.
      give: what the file should be.
    """
    if good * _FEW <= count - good:
        told = f"only {good} of {count} rows" if good else "not one row"
        raise UserError(f"{path}: {told} can be used ({printable(why)}); give {give}")


def usable(entries: Iterable[Entry], problems: Problems) -> Iterator[Entry]:
    """Drops captions that are no text or come twice, and images that are left without any or are
    listed twice.

    Raises:
      UserError: two images have one id, so that nothing says whose a caption is.
    """
    seen: dict[Id, str] = {}
    for entry in entries:
        if entry.written in seen:
            if (other := seen[entry.written]) != entry.filename:
                raise UserError(
                    f"{printable(other)!r:.80} and {printable(entry.filename)!r:.80} have the id "
                    f"{shown_id(entry.written)}; ids must be unique"
                )
            problems.add("images listed twice", entry)
            continue
        seen[entry.written] = entry.filename
        good: list[tuple[int | None, str]] = []
        known: set[tuple[int, str]] = set()
        for number, (caption_id, text) in enumerate(entry.captions):
            shown = f"{entry}: caption {number + 1 if caption_id is None else caption_id}"
            if not isinstance(text, str) or not is_unicode(text):
                problems.add("captions that are not text", f"{shown}: {reprlib.repr(text)}")
            elif not text.strip():
                problems.add("empty captions", shown)
            elif caption_id is not None and (caption_id, text) in known:
                problems.add("captions listed twice", shown)
            else:
                good.append((caption_id, text))
                if caption_id is not None:
                    known.add((caption_id, text))
        if good:
            yield dataclasses.replace(entry, captions=tuple(good))
        else:
            problems.add("images without captions", entry)


def numbered(entries: Sequence[Entry]) -> list[Entry]:
    """Entries with their numbers; captions keep their ids in a split whose captions all have one
    of their own, and are counted in the others (some files restart them for each image)."""
    numbers = ids.numbered(entry.written for entry in entries)
    own: dict[str, list[int | None]] = {}
    for entry in entries:
        own.setdefault(entry.split, []).extend(i for i, _ in entry.captions)
    counted = {split for split, those in own.items() if None in those or _repeat(those)}
    count = itertools.count(1)
    found = []
    for entry in entries:
        captions = entry.captions
        if entry.split in counted:
            captions = tuple((next(count), text) for _, text in captions)
        number = numbers[entry.written]
        found.append(dataclasses.replace(entry, image_id=number, captions=captions))
    return found


def _repeat(values: Sequence[Any]) -> bool:
    return len(set(values)) < len(values)


def check_unique(entries: Sequence[Entry]) -> None:
    """An image in two splits would make a test of what was trained on.

    Raises:
      UserError: an id comes twice, be it in two splits or in two files of one split.
    """
    home: dict[Id, str] = {}
    twice = [e for e in entries if home.setdefault(e.written, e.split) != e.split]
    if twice:
        first = twice[0]
        more = f" ({len(twice)} images are in two splits)" if len(twice) > 1 else ""
        raise UserError(
            f"image {shown_id(first.written)} is in {home[first.written]!r} and in "
            f"{first.split!r}{more}; splits must not share images (COCO 2014 and 2017 name the "
            "same ones)"
        )
    seen: set[Id] = set()
    for entry in entries:
        if entry.written in seen:
            raise UserError(
                f"image id {shown_id(entry.written)} ({printable(entry.filename)}) occurs twice in "
                f"{entry.split!r}, in different captions files; image ids must be unique"
            )
        seen.add(entry.written)


def shown_id(written: Id) -> str:
    """An id in a line of ours."""
    return shortened(printable(str(written)), 60)
