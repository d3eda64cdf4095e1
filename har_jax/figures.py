"""What a step tells besides its update: figures that know how they are reduced.

A mean over microbatches, processes or steps is right only where sums and weights are kept apart,
and a largest value is no mean at all. So every figure is one of the types below; each is a pytree
and may leave a jitted function. `merge` combines two of one kind, `reduce` those of several steps.
`Loss` is what an objective returns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from har_jax.types import AnyArray, Array

Number = AnyArray | np.number | float
"""On a device, or fetched from there."""


class Mean(NamedTuple):
    """A weighted mean, `total / weight`; 0 where nothing was weighed."""

    total: Number
    weight: Number

    @property
    def value(self) -> Number:
        return self.total / (self.weight + (self.weight == 0))


class Deviation(NamedTuple):
    """A population standard deviation, kept as the sums of `weight` values and of their squares."""

    total: Number
    squares: Number
    weight: Number

    @property
    def value(self) -> Number:
        mean = self.total / self.weight
        return abs(self.squares / self.weight - mean**2) ** 0.5  # rounding may take it below 0


class Max(NamedTuple):
    """The largest value seen."""

    value: Number


class Last(NamedTuple):
    """The value of the last step, such as a learning rate."""

    value: Number


Figure = Mean | Deviation | Max | Last


class Loss(NamedTuple):
    """What an objective returns: minimised is `total / weight`.

    `figures` are logged; `arrays` (the rollout's tokens, say) are kept of the last step only.
    """

    total: Array
    weight: Array
    figures: dict[str, Figure]
    arrays: dict[str, Array] = {}


LossFn = Callable[[dict[str, Array], Mapping[str, Array], Array], Loss]
"""(all parameters, batch, key) → the loss; what an objective is to training."""


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
        library: Any = jnp if isinstance(first.value, jax.Array) else np
        return Max(library.maximum(first.value, second.value))
    return type(first)(*(a + b for a, b in zip(first, second, strict=True)))


def reduce(steps: Sequence[Mapping[str, Figure]]) -> dict[str, float]:
    """The values of figures over several steps, on the host; waits for the device.

    Sums are made in float64; the values are float32, as a device has them, so that those of a
    single step are what the device would have computed.
    """
    values = [jax.tree.map(np.float64, step) for step in jax.device_get(list(steps))]
    merged = functools.reduce(lambda a, b: {k: merge(a[k], b[k]) for k in a}, values)
    return {name: float(np.float32(figure.value)) for name, figure in merged.items()}
