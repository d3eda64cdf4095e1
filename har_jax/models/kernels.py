"""What a `Linear` multiplies by.

Layers, adapters and loaders ask a kernel for a product (`matmul`), for the `shape` of its dense
values, or for these (`dense`), and for nothing else: how the numbers are kept is the kernel's own
affair. `DenseKernel` is an array, `quantised.QuantisedKernel` codes and scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx

from har_jax.models.functional import LAYERS
from har_jax.sharding import (
    BATCH_AXES,
    ROLLOUT_RULES,
    RULES,
    LogicalAxes,
    Rules,
    constrain_param,
)
from har_jax.types import Array, DTypeLike


def rows_times(x: Array, kernel: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
    """`x [*batch, in...] @ kernel [in..., out...]`, as one product of rows and columns.

    Left with all their axes, XLA's CPU backend makes products of three and more, and their
    gradients, in half the speed.
    """
    batch, inputs, outputs = x.shape[: x.ndim - n_in], kernel.shape[:n_in], kernel.shape[n_in:]
    rows = x.reshape(math.prod(batch), math.prod(inputs))
    columns = kernel.reshape(math.prod(inputs), math.prod(outputs))
    return jnp.matmul(rows, columns, preferred_element_type=wide).reshape(*batch, *outputs)


IN_PLACE = "in_place"
"""Metadata of parameters that a decode loop reads where training has them
(`decoding/weights.py`)."""

GATHERED_BATCH: Rules = {**RULES, "batch": "data"}
SPREAD_BATCH: Rules = {**ROLLOUT_RULES, "batch": BATCH_AXES}


def between_devices(
    kernel: nnx.Variable, x: Array, n_in: int, product: Callable[[Array], Array]
) -> Array:
    """`product(x)`. Where the kernel is to be read in place (`IN_PLACE`), rows are brought together
    over `fsdp` before it and spread again after it: the kernel stays where it lies."""
    if not kernel.get_metadata().get(IN_PLACE):
        return product(x)
    axes: LogicalAxes = kernel.get_metadata()["logical_axes"]
    axes = axes[1:] if axes[0] == LAYERS else axes
    some = [None] * (x.ndim - n_in - 1)
    x = constrain_param(x, ("batch", *some, *axes[:n_in]), GATHERED_BATCH)
    y = constrain_param(product(x), ("batch", *some, *axes[n_in:]), GATHERED_BATCH)
    return constrain_param(y, ("batch", *some, *axes[n_in:]), SPREAD_BATCH)


@runtime_checkable
class Kernel(Protocol):
    """What a `Linear` asks for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense values, `[in..., out...]`."""
        ...

    @property
    def logical_axes(self) -> LogicalAxes: ...

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        """`x [*batch, in...] @ kernel`, in the dtype of `x`, or with a result in `wide`."""
        ...

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The values, in their own dtype or another."""
        ...


class DenseKernel(nnx.Param):
    """A kernel `[in..., out...]` that is an array."""

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        """`x [*batch, in...] @ kernel`, in the dtype of `x`.

        Args:
          n_in: how many of the kernel's axes are inputs.
          wide: the dtype of the result, where it is not that of `x`.
        """
        kernel = self.dense(x.dtype)
        return between_devices(self, x, n_in, lambda x: rows_times(x, kernel, n_in, wide))

    @property
    def logical_axes(self) -> LogicalAxes:
        return self.get_metadata()["logical_axes"]

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The values, in their own dtype or another."""
        value = self[...]
        return value if dtype is None else value.astype(dtype)
