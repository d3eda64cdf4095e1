"""What readers of captions return: images by name with their captions; and what they dropped."""

from __future__ import annotations

import collections
import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from har_jax.errors import UserError

_LISTED = 5  # offenders of each kind that are named


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of an annotation file, not yet looked for on disk.

    Attributes:
      split: which split it belongs to.
      image_id: unique within the id space.
      names: file names to look for in each image folder, best first; () where none is known.
      captions: (caption id, text).
      filename: the image's name in the dataset; by default the last part of the first name.
      domain: nocaps' "in-domain", "near-domain" or "out-domain"; "" elsewhere.
    """

    split: str
    image_id: int
    names: tuple[str, ...]
    captions: tuple[tuple[int, Any], ...]
    filename: str = ""
    domain: str = ""

    def __post_init__(self) -> None:
        if not self.filename and self.names:
            object.__setattr__(self, "filename", posixpath.basename(self.names[0]))


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
            self.examples[kind].append(str(example))

    def lines(self) -> list[str]:
        """One line per kind: how many, and the first few."""
        return [self._line(kind) for kind in self.counts]

    def _line(self, kind: str) -> str:
        named, count = "; ".join(self.examples[kind]), self.counts[kind]
        more = f"; and {count - _LISTED} more" if count > _LISTED else ""
        return f"{count} {kind}: {named}{more}"

    def refuse(self, hint: str = "") -> None:
        """Raises UserError when anything was dropped that was not asked for."""
        kinds = [kind for kind in self.counts if kind not in self.wanted]
        if kinds:
            lines = " | ".join(map(self._line, kinds))
            raise UserError(f"strict drops nothing, but there are {lines}{hint}")

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


def usable(entries: Iterable[Entry], problems: Problems) -> Iterator[Entry]:
    """Drops captions that are no text, and images that are left without any or come twice.

    Raises:
      UserError: an image id of more than 31 bits, or a caption's of more than 64.
    """
    seen: set[int] = set()
    for entry in entries:
        if not 0 <= entry.image_id < 2**31:  # what devices hold
            raise UserError(
                f"{entry.names[0]} has the image id {entry.image_id}; give 0 to 2^31 - 1"
            )
        for caption_id, _ in entry.captions:
            if not -(2**63) <= caption_id < 2**63:
                raise UserError(f"the caption id {caption_id} does not fit into 64 bits")
        name = f"{entry.names[0]} (id {entry.image_id})"
        if entry.image_id in seen:
            problems.add("images listed twice", name)
            continue
        seen.add(entry.image_id)
        good = []
        for caption_id, text in entry.captions:
            if not isinstance(text, str) or not _is_unicode(text):
                problems.add("captions that are not text", f"caption {caption_id}: {text!r}")
            elif not text.strip():
                problems.add("empty captions", f"caption {caption_id}")
            else:
                good.append((caption_id, text))
        if good:
            yield dataclasses.replace(entry, captions=tuple(good))
        else:
            problems.add("images without captions", name)


def _is_unicode(text: str) -> bool:
    """JSON can hold half a character (a lone surrogate), which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unique(entries: Sequence[Entry]) -> None:
    """An image in two splits would make a test of what was trained on.

    Raises:
      UserError: an id comes twice, be it in two splits or in two files of one split.
    """
    home: dict[int, str] = {}
    twice = [e for e in entries if home.setdefault(e.image_id, e.split) != e.split]
    if twice:
        first = twice[0]
        more = f" ({len(twice)} images are in two splits)" if len(twice) > 1 else ""
        raise UserError(
            f"image {first.image_id} is in {home[first.image_id]!r} and in {first.split!r}{more}; "
            "splits must not share images (COCO 2014 and 2017 name the same ones)"
        )
    seen: set[int] = set()
    for entry in entries:
        if entry.image_id in seen:
            raise UserError(
                f"image id {entry.image_id} ({entry.names[0]}) occurs twice in "
                f"{entry.split!r}, in different captions files; image ids must be unique"
            )
        seen.add(entry.image_id)
