"""The page of a prepared dataset: splits, lengths of captions, images with all their captions, what
was dropped and why.

As in `page`, this module decides what is shown; `templates/dataset.html.j2` says how, and escapes
every value.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from har_jax.data.dataset import Split, open_split, read_card, split_names, words_of
from har_jax.data.tally import word_figures
from har_jax.errors import UserError
from har_jax.progress import track
from har_jax.reports.bars import Bars, make_bars
from har_jax.reports.page import flat, templates, write_page
from har_jax.reports.run_view import data_uri
from har_jax.text.words import WHITESPACE, Words

VIEW = "view.html"
_SIDE = 240  # pixels of an embedded image's longer side: there are many
_UNUSUAL = 12  # images of the groups of shortest and longest captions


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image with its captions, each with its number of words; `places` as in `gallery.Card`."""

    image_id: int
    filename: str
    about: str
    uri: str | None
    captions: list[tuple[str, int]]
    places: dict[str, int]


@dataclasses.dataclass(frozen=True)
class SplitView:
    """A split, with how many words each caption has, image by image."""

    split: Split
    lengths: list[list[int]]
    figures: dict[str, Any]  # as in `dataset.json`


def write_dataset_page(
    directory: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    split: str = "",
    limit: int = 24,
) -> pathlib.Path:
    """Writes the page of a dataset and returns its path.

    Args:
      out: the file; DIR/view.html if None.
      split: the only one to show; "" for all.
      limit: images of each split.

    Raises:
      UserError: there is no dataset, no such split, or it cannot be read.
    """
    directory = pathlib.Path(directory)
    names = [split] if split else split_names(directory)
    splits = [open_split(directory, name) for name in names]
    try:
        words, note = words_of(directory), ""
    except UserError as error:  # those of a function, which is not run for being named
        words, note = WHITESPACE, f"words are counted by spaces here: {error}"
    views = [_counted(one, words) for one in splits]
    path = pathlib.Path(out) if out else directory / VIEW
    write_page(path, render(directory, read_card(directory), views, limit, note))
    return path


def _counted(split: Split, words: Words) -> SplitView:
    rows = track(split.captions, total=len(split), desc=f"counting {split.name}", unit="images")
    found = [[words(text) for text in captions] for captions in rows]
    return SplitView(split, [[len(each) for each in one] for one in found], word_figures(found))


def render(
    directory: pathlib.Path,
    card: Mapping[str, Any],
    views: Sequence[SplitView],
    limit: int,
    note: str = "",
) -> str:
    """The page as text."""
    groups = _groups(views, limit)
    places: dict[tuple[int, int], dict[str, int]] = {}
    for number, (_, members) in enumerate(groups):
        for place, member in enumerate(members):
            places.setdefault(member, {})[f"g{number}"] = place
    return (
        templates()
        .get_template("dataset.html.j2")
        .render(
            title=str(card.get("name") or directory.resolve().name),
            description=str(card.get("description") or ""),
            notes=[note] if note else [],
            header=_HEADER,
            rows=[_row(view, (card.get("splits") or {}).get(view.split.name)) for view in views],
            histograms=_histograms(views),
            dropped=_dropped(card) if card else None,
            choices={f"g{i}": label for i, (label, members) in enumerate(groups) if members},
            shown=[_image(views[v], i, found) for (v, i), found in places.items()],
            origin=_origin(directory, card),
        )
    )


_HEADER = (
    "split",
    "images",
    "captions",
    "per image",
    "vocabulary",
    "words",
    "longest",
    "max_tokens",
)


def _row(view: SplitView, noted: Mapping[str, Any] | None) -> list[str]:
    """A row of the table of splits; `noted` is what the card says of it."""
    figures = view.figures
    counts = [int(n) for n in figures["references_per_image"]]
    words = figures["words_per_caption"]
    spread = sorted({min(counts, default=0), max(counts, default=0)})
    tokens = (noted or {}).get("tokens_per_caption")
    needed = tokens.get("max_tokens") if isinstance(tokens, Mapping) else None
    return [
        view.split.name,
        f"{figures['images']:,}",
        f"{figures['captions']:,}",
        " – ".join(map(str, spread)),
        f"{figures['vocabulary']:,}",
        f"{words['mean']:.1f} ({words['median']})",
        str(words["max"]),
        "–" if needed is None else str(needed),
    ]


def _histograms(views: Iterable[SplitView]) -> list[Bars]:
    """Of each split with captions the lengths; and captions per image, where they are not alike."""
    found = []
    for view in views:
        name, lengths = view.split.name, list(itertools.chain(*view.lengths))
        if lengths:
            title = f"Length of captions in {name}"
            found.append(make_bars(title, lengths, unit="words", of="captions"))
        per_image = [len(each) for each in view.lengths]
        if len(set(per_image)) > 1:
            title = f"Captions of an image in {name}"
            found.append(make_bars(title, per_image, unit="captions", of="images"))
    return found


def _groups(views: Sequence[SplitView], limit: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """(label, [(number of the split, number of the image)]): images at even distances of each
    split, then those with the shortest and with the longest captions of all."""
    found = []
    for v, view in enumerate(views):
        size, n = len(view.split), min(limit, len(view.split))
        found.append((view.split.name, [(v, k * size // n) for k in range(n)]))
    of_all = [
        (min(lengths), max(lengths), v, i)
        for v, view in enumerate(views)
        for i, lengths in enumerate(view.lengths)
        if lengths
    ]
    few = min(limit, _UNUSUAL)
    shortest = sorted(of_all, key=lambda each: each[0])[:few]
    longest = sorted(of_all, key=lambda each: -each[1])[:few]
    found.append(("shortest captions", [(v, i) for *_, v, i in shortest]))
    found.append(("longest captions", [(v, i) for *_, v, i in longest]))
    return found


def _image(view: SplitView, i: int, places: dict[str, int]) -> Shown:
    listing = view.split.listing
    try:
        uri = data_uri(view.split.read(i), _SIDE)
    except UserError:  # a damaged record
        uri = None
    domain = listing.domains[i] if listing.domains else ""
    return Shown(
        listing.ids[i],
        listing.filenames[i],
        ", ".join(part for part in (view.split.name, domain) if part),
        uri,
        list(zip(listing.captions[i], view.lengths[i], strict=True)),
        places,
    )


def _dropped(card: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(what, how many, the first few) of all that `prepare` left out."""
    counts, examples = card.get("dropped"), card.get("dropped_examples")
    if not isinstance(counts, Mapping):
        return []
    some = examples if isinstance(examples, Mapping) else {}
    return [
        (str(kind), str(count), [str(each) for each in some.get(kind) or []])
        for kind, count in counts.items()
    ]


def _origin(directory: pathlib.Path, card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    settings = card.get("settings")
    facts = {
        "directory": directory,
        "ids": card.get("ids"),
        "words": card.get("words", "ptb") if card else None,
        "made by": card.get("made_by"),
    }
    known = [(name, value) for name, value in facts.items() if value]
    settled = flat(settings) if isinstance(settings, Mapping) else []
    return known + [pair for pair in settled if pair[1] not in (None, "", [])]
