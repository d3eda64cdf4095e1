"""Fewer training images: fixed subsets, each inside every larger one, for low-resource runs.

An image's place in the ranking is a hash of its id, so a subset depends neither on the run's seed
nor on the order of the dataset, and 1 % of it is part of its 10 %.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from har_jax.data.dataset import Example, Listing, Split
from har_jax.errors import UserError


def choose(image_ids: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Positions of `count` images, ascending; those of a smaller count are among them.

    Args:
      seed: draws other subsets, which are nested among themselves.
    """

    def rank(position: int) -> tuple[bytes, int]:
        image_id = image_ids[position]
        return hashlib.sha256(f"{seed}:{image_id}".encode()).digest(), image_id

    return sorted(sorted(range(len(image_ids)), key=rank)[:count])


def take(split: Split, *, fraction: float = 1.0, shots: int = 0, seed: int = 0) -> Split:
    """The split, or the part of it that `data.fraction` or `data.shots` asks for.

    Args:
      fraction: share of the images, above 0 and at most 1; rounded to whole images, at least one.
      shots: how many images; 0: by `fraction`.

    Raises:
      UserError: both are given, or a size that cannot be had.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"config.data.fraction is {fraction}; it must be above 0 and at most 1")
    if shots < 0:
        raise UserError(f"config.data.shots is {shots}; it must be above 0, or 0 for all images")
    if shots and fraction < 1:
        raise UserError(
            f"config.data.fraction={fraction} and config.data.shots={shots} are both set; give one"
        )
    if shots > len(split):
        raise UserError(
            f"config.data.shots={shots} is more than the {len(split)} images of "
            f"{str(split.directory)!r} {split.name!r}; lower it"
        )
    count = shots or max(1, round(fraction * len(split)))
    if count == len(split):
        return split
    return Subset(split, choose(split.ids, count, seed))


class Subset(Split):
    """Some examples of a split, in its order; reads like a split."""

    def __init__(self, whole: Split, positions: Sequence[int]):
        super().__init__(whole.directory, whole.name, len(positions))
        self.whole, self._positions = whole, list(positions)

    def __repr__(self) -> str:
        return f"Subset({self.whole!r}, {len(self)} images)"

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"whole": self.whole, "_positions": self._positions}

    def _example(self, position: int) -> Example:
        return self.whole[self._positions[position]]

    @functools.cached_property
    def listing(self) -> Listing:
        def some(values: Any) -> Any:
            return None if values is None else [values[i] for i in self._positions]

        return Listing(*map(some, vars(self.whole.listing).values()))
