"""Chance that falls the same on every machine and with every library version.

Python guarantees the stream of `random.Random(text).random()`; it does not guarantee that
`choice`, `shuffle` or `sample` turn it into the same picks in the next version, and NumPy does not
guarantee `Generator` at all. So every draw of the scenes is made from `random()` here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of draws named by a key, e.g. `Dice(seed, "train", 17)`; no key shares another's."""

    def __init__(self, *key: object):
        self._random = random.Random("/".join(map(str, key))).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[int(self._random() * len(options))]

    def weigh(self, weights: Mapping[T, float]) -> T:
        """One of the keys, as likely as its weight says (the weights need not sum to one)."""
        left = self._random() * sum(weights.values())
        options = list(weights)
        for option in options[:-1]:
            left -= weights[option]
            if left < 0:
                return option
        return options[-1]  # also where rounding left a crumb

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order (Fisher-Yates from the front)."""
        pool = list(options)
        for i in range(count):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]
