"""The images of a report with their captions, and what a run wrote below some as it learned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from har_jax.reports import run_view
from har_jax.reports.run_view import DatasetImages, Example, RunView, Sample, ScoredSplit

GROUPS = {
    True: {"gain": "biggest gains", "loss": "biggest losses", "random": "random"},
    False: {"gain": "best", "loss": "worst", "random": "random"},
}
"""What the groups of images are called, where two runs are compared and where there is one."""


@dataclasses.dataclass(frozen=True)
class Card:
    """An image with its captions; `places` is its place in each group that has it."""

    example: Example
    places: dict[str, int]
    uri: str | None


@dataclasses.dataclass(frozen=True)
class Story:
    """The captions of one image at several steps: pairs (step, caption)."""

    image_id: int | str
    uri: str | None
    references: list[str]
    captions: list[tuple[int, str]]


def cards(
    columns: Mapping[str, ScoredSplit], images: DatasetImages | None, n_images: int
) -> list[Card]:
    """The images to show, up to `n_images` of each group; those of the first group first."""
    if not columns:
        return []
    ids = list(list(columns.values())[-1].rows)
    examples = run_view.examples_of(columns, images.references(ids) if images else {})
    places: dict[int, dict[str, int]] = {}
    for group, members in run_view.choose_examples(examples, n_images).items():
        for place, image_id in enumerate(members):
            places.setdefault(image_id, {})[group] = place
    by_id = {example.image_id: example for example in examples}
    return [
        Card(by_id[i], found, images.data_uri(i) if images else None) for i, found in places.items()
    ]


def stories(run: RunView, images: DatasetImages | None) -> list[Story]:
    """Up to six images of samples.jsonl, each with its captions at some eight steps."""
    by_image: dict[int | str, dict[int, Sample]] = {}
    for row in run.samples:
        by_image.setdefault(row.image_id, {})[row.step] = row
    if by_image and images is None and run.setting("data.dir"):
        images = DatasetImages(run.setting("data.dir"), run.samples[-1].split)
    found = []
    for image_id, rows in list(by_image.items())[:6]:
        steps = sorted(rows)
        shown = sorted({*steps[:: max(1, -(-len(steps) // 8))], steps[-1]})
        uri = images.data_uri(image_id) if images else None
        captions = [(step, rows[step].caption) for step in shown]
        found.append(Story(image_id, uri, rows[steps[-1]].references, captions))
    return found


_WORD = re.compile(r"([^\W_]+(?:['’-][^\W_]+)*)")


def words_of(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """The caption in pieces, each with whether it is anything but a word that no reference has.

    A blank caption has no pieces; without references every word counts as known.
    """
    if not caption.strip():
        return []
    known = {word.lower() for text in references for word in _WORD.findall(text)}
    return [
        (piece, i % 2 == 0 or not references or piece.lower() in known)
        for i, piece in enumerate(_WORD.split(caption))  # every other piece is a word
        if piece
    ]
