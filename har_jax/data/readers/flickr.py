"""Flickr8k's and Flickr30k's captions to entries.

    dataset_flickr8k.json, dataset_flickr30k.json   Karpathy's splits, see `readers.coco`
    Flickr8k.token.txt, results_20130124.token      lines of `NAME.jpg#0<TAB>caption`

The second names no splits: they are drawn by a hash of the file name. Ids are `imgid` in the first;
in the second they are made from the names (Flickr's own numbers do not fit into 32 bits).
"""

from __future__ import annotations

import os
import re

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Entry, Problems, Reading, numbered, refuse_useless, usable
from har_jax.data.readers import coco
from har_jax.data.readers.shares import Shares, check_whole
from har_jax.errors import UserError
from har_jax.foreign import read_text

_LINE = re.compile(r"(?P<name>\s*[^\t#\s][^\t#]*)#(?P<number>\d+)\t(?P<caption>.*)")
_LINES = "lines of NAME.jpg#0, a tab and the caption"
_GIVE = "Karpathy's dataset_flickr30k.json, or a token file"


def read_file(path: PathLike, *, shares: Shares, problems: Problems) -> Reading:
    """The images of one captions file of either format.

    Args:
      shares: how a file without splits is divided.

    Raises:
      UserError: no such file, cut off, of neither format, or shares for a file with splits.
    """
    text = read_text(path, _GIVE)
    if text.lstrip().startswith("{"):
        if shares.given:
            raise UserError(
                f"{path} names the split of each image; --val and --test are for token files"
            )
        return coco.read_files([path], problems=problems)
    captions: dict[str, list[tuple[None, str]]] = {}
    first, count, bad = "", 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        count += 1
        match = _LINE.fullmatch(line)
        if match is None:
            told = f"line {number} is {line!r:.60}"
            problems.add("malformed rows", told)
            first, bad = first or told, bad + 1
        else:
            name = os.path.normpath(match["name"].strip())
            captions.setdefault(name, []).append((None, match["caption"]))
    if not count:
        raise UserError(f"{path} holds no captions; expected {_LINES}")
    if bad:
        refuse_useless(path, count - bad, count, f"{first}; expected {_LINES}", _GIVE)
    entries = [
        Entry(shares.split_of(name), name, (name,), tuple(those))
        for name, those in captions.items()
    ]
    return Reading(numbered(list(usable(entries, problems))), "", check_whole(path, text))
