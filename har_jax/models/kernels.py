"""What a `Linear` multiplies by.

Layers, adapters and loaders ask a kernel for a product (`matmul`), for the `shape` of its dense
values, or for these (`dense`), and for nothing else: how the numbers are kept is the kernel's own
affair. `DenseKernel` is an array; a quantised kernel would be a module with codes and scales and
the same three.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx

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


class DenseKernel(nnx.Param):
    """A kernel `[in..., out...]` that is an array."""

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        """`x [*batch, in...] @ kernel`, in the dtype of `x`.

        Args:
          n_in: how many of the kernel's axes are inputs.
          wide: the dtype of the result, where it is not that of `x`.
        """
        return rows_times(x, self.dense(x.dtype), n_in, wide)

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The values, in their own dtype or another."""
        value = self[...]
        return value if dtype is None else value.astype(dtype)
