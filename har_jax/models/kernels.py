"""What a `Linear` multiplies by.

Layers, adapters and loaders ask a kernel for a product, for its shape, or for its dense values, and
for nothing else: how the numbers are kept is the kernel's own affair. `DenseKernel` is an array; a
quantised kernel would be a module with codes and scales and the same three.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx

from har_jax.types import Array, DTypeLike


@runtime_checkable
class Kernel(Protocol):
    """A matrix `[in..., out...]`, however it is kept."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense values."""
        ...

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        """`x [*batch, in...] @ kernel [in..., out...]`, in the dtype of `x`.

        Args:
          n_in: how many of the kernel's axes are inputs.
          wide: the dtype of the result, where it is not that of `x`.
        """
        ...

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The values, in their own dtype or another."""
        ...


class DenseKernel(nnx.Param):
    """A kernel that is an array."""

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        return jnp.tensordot(x, self.dense(x.dtype), axes=n_in, preferred_element_type=wide)

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        value = self[...]
        return value if dtype is None else value.astype(dtype)
