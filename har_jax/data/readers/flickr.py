"""Flickr8k's and Flickr30k's captions to entries.

    dataset_flickr8k.json, dataset_flickr30k.json   Karpathy's splits, see `readers.coco`
    Flickr8k.token.txt, results_20130124.token      lines of `NAME.jpg#0<TAB>caption`

The second names no splits: they are drawn by a hash of the file name. Ids are `imgid` in the first;
in the second they are made from the names (Flickr's own numbers do not fit into 32 bits).
"""

from __future__ import annotations

import pathlib
import re

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Entry, Problems, Reading, usable
from har_jax.data.readers import coco
from har_jax.data.readers.shares import Shares, check_whole, image_ids_of
from har_jax.errors import UserError
from har_jax.foreign import read_text

_LINE = re.compile(r"(?P<name>[^\t#]+)#(?P<number>\d+)\t(?P<caption>.*)")


def read_file(path: PathLike, *, shares: Shares, problems: Problems) -> Reading:
    """The images of one captions file of either format.

    Args:
      shares: how a file without splits is divided.

    Raises:
      UserError: no such file, cut off, of neither format, or shares for a file with splits.
    """
    if pathlib.Path(path).suffix == ".json":
        if shares.given:
            raise UserError(
                f"{path} names the split of each image; --val and --test are for token files"
            )
        return coco.read_files([path], problems=problems)
    text = read_text(path, "Karpathy's dataset_flickr30k.json, or a token file")
    captions: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path} line {number} is {line[:60]!r}; expected NAME.jpg#0, a tab and the "
                "caption (Flickr8k.token.txt), or give Karpathy's dataset_flickr30k.json"
            )
        captions.setdefault(match["name"].strip(), []).append((number, match["caption"]))
    if not captions:
        raise UserError(f"{path} holds no captions; expected lines of NAME.jpg#0, a tab, a caption")
    ids = image_ids_of(captions)
    entries = [
        Entry(shares.split_of(name), ids[name], (name,), tuple(those))
        for name, those in captions.items()
    ]
    return Reading(list(usable(entries, problems)), "", check_whole(path, text))
