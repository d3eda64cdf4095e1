"""What a step tells besides its update: figures that know how they are reduced.

A mean over microbatches, processes or steps is right only where sums and weights are kept apart,
and a largest value is no mean at all. So every figure is one of the types below; each is a pytree
and may leave a jitted function. `merge` combines two of one kind, `reduce` those of several steps.
`Loss` is what an objective returns.
"""

from __future__ import annotations

import dataclasses
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


class PerStep(NamedTuple):
    """The mean over steps of what microbatches add up to, such as a number of tokens."""

    total: Number
    steps: Number = 1.0

    @property
    def value(self) -> Number:
        return self.total / self.steps


class Last(NamedTuple):
    """The value of the last step, such as a learning rate."""

    value: Number


Figure = Mean | Deviation | PerStep | Max | Last


class Loss(NamedTuple):
    """What an objective returns: minimised is `total / weight`.

    `figures` are logged; `arrays` (the rollout's tokens, say) are kept of the last step only.
    """

    total: Array
    weight: Array
    figures: dict[str, Figure]
    arrays: dict[str, Array] = {}


LossFn = Callable[[dict[str, Array], Mapping[str, Any], Array], Loss]
"""(all parameters, batch, key) → the loss; what an objective is to training."""


@dataclasses.dataclass(frozen=True)
class PartedLoss:
    """A loss whose batch can be taken in parts, so that gradients may be made of one after the
    other (`training/gradients.py`). Called, it is the loss of a whole batch.

    Attributes:
      whole: of a batch, at once.
      prepare: (parameters, batch, key) → what the parts are made of, each array with an image along
        its first axis. It is made once, of the whole batch, and never differentiated.
      part: the loss of some images of what was prepared. Totals, weights and figures of the parts
        add up to those of the whole; arrays have an image along their first axis.
    """

    whole: LossFn
    prepare: Callable[[dict[str, Array], Mapping[str, Array], Array], dict[str, Any]]
    part: LossFn

    def __call__(self, params: dict[str, Array], batch: Mapping[str, Any], key: Array) -> Loss:
        return self.whole(params, batch, key)


def parted(loss_fn: LossFn) -> PartedLoss:
    """Any loss as one of parts; one that knows of none is given images of the batch itself."""
    if isinstance(loss_fn, PartedLoss):
        return loss_fn
    return PartedLoss(loss_fn, lambda params, batch, key: dict(batch), loss_fn)


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


def of_parts(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Figures of a step from those of its microbatches, which lie along the first axis."""

    def one(figure: Figure) -> Figure:
        if isinstance(figure, Max):
            return Max(jnp.max(figure.value))
        if isinstance(figure, Last):
            return Last(jnp.asarray(figure.value)[-1])
        added = type(figure)(*(jnp.sum(jnp.asarray(x), axis=0) for x in figure))
        return PerStep(added.total) if isinstance(added, PerStep) else added

    return {name: one(figure) for name, figure in figures.items()}


def reduce(steps: Sequence[Mapping[str, Figure]]) -> dict[str, float]:
    """The values of figures over several steps, on the host; waits for the device.

    Sums are made in float64; the values are float32, as a device has them, so that those of a
    single step are what the device would have computed.
    """
    values = [jax.tree.map(np.float64, step) for step in jax.device_get(list(steps))]
    merged = functools.reduce(lambda a, b: {k: merge(a[k], b[k]) for k in a}, values)
    return {name: float(np.float32(figure.value)) for name, figure in merged.items()}
