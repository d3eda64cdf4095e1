"""What a step tells besides its update: figures that know how they are reduced.

A mean over microbatches, processes or steps is right only where sums and weights are kept apart, and a
largest value is no mean at all. So every figure is one of the types below; each is a pytree and may
leave a jitted function, and `merge` combines two of one kind. `Loss` is what an objective returns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from har_jax.types import Array


class Mean(NamedTuple):
    """A weighted mean: `total / weight`."""

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        return self.total / jnp.maximum(self.weight, 1e-30)


class Deviation(NamedTuple):
    """A population standard deviation, kept as sums of values and of squares over `weight` values."""

    total: Array
    squares: Array
    weight: Array

    @property
    def value(self) -> Array:
        mean = self.total / self.weight
        return jnp.sqrt(jnp.maximum(self.squares / self.weight - mean**2, 0))


class Max(NamedTuple):
    """The largest value seen."""

    largest: Array

    @property
    def value(self) -> Array:
        return self.largest


class Last(NamedTuple):
    """The value of the last step, such as a learning rate."""

    latest: Array

    @property
    def value(self) -> Array:
        return self.latest


Figure = Mean | Deviation | Max | Last


class Loss(NamedTuple):
    """What an objective returns: minimised is `total / weight`.

    `figures` are logged; `arrays` (the rollout's tokens, say) are kept of the last step only.
    """

    total: Array
    weight: Array
    figures: dict[str, Figure]
    arrays: dict[str, Array] = {}


def mean(values: Array, weights: Any = None) -> Mean:
    """The mean of an array, or, with weights of its shape, the weighted one."""
    values = jnp.asarray(values, jnp.float32)
    if weights is None:
        return Mean(jnp.sum(values), jnp.float32(values.size))
    weights = jnp.asarray(weights, jnp.float32)
    return Mean(jnp.sum(values * weights), jnp.sum(weights))


def deviation(values: Array) -> Deviation:
    """The standard deviation of an array."""
    values = jnp.asarray(values, jnp.float32)
    return Deviation(jnp.sum(values), jnp.sum(values**2), jnp.float32(values.size))


def merge(first: Figure, second: Figure) -> Figure:
    """Two of a kind as one; of `Last` the second. Works on arrays and on numbers.

    Raises:
      TypeError: the two are of different kinds.
    """
    if type(first) is not type(second):
        raise TypeError(f"{type(first).__name__} and {type(second).__name__} cannot be merged")
    if isinstance(second, Last):
        return second
    if isinstance(first, Max) and isinstance(second, Max):
        return Max(jnp.maximum(first.largest, second.largest))
    return type(first)(*(a + b for a, b in zip(first, second, strict=True)))
