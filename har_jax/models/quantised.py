"""Kernels of frozen linears in 8 or 4 bits, dequantised for each product.

    int8   w ≈ s · c, c in −127..127, s = max|w| / 127 of a block
    nf4    w ≈ s · level[c], 16 levels, s = max|w| of a block (Dettmers et al. 2023, "QLoRA",
           arXiv:2305.14314: quantiles of a normal distribution); two codes a byte

A block is a run of inputs of one output, so that `fsdp`, which splits inputs, splits no block.
Dense values exist for the length of a product: the backward pass makes them again, and a loop
cannot make them once for all its turns. Where equal layers lie in one stack, a decode loop reads
each layer's codes out of the stack (`of_layer`), for taken apart they would be there twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from har_jax.models.functional import only_shapes
from har_jax.models.kernels import DenseKernel, between_devices, rows_times
from har_jax.sharding import LogicalAxes, mesh_in_context
from har_jax.types import AnyArray, Array, DTypeLike

SCHEMES = ("int8", "nf4")
BLOCK = {"int8": 128, "nf4": 64}
MIN_BLOCK = 4

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of the paper's appendix E."""

NF4_LEVELS = np.asarray(NF4, np.float32)

CODES, SCALES = ".kernel.codes", ".kernel.scales"


def is_part(name: str) -> bool:
    """Whether a parameter is part of a quantised kernel."""
    return name.endswith((CODES, SCALES))


def dense_name(name: str) -> str:
    """`q.kernel` of `q.kernel.codes`; other names are their own."""
    return name.rpartition(".")[0] if is_part(name) else name


class Layout(NamedTuple):
    """How a kernel `[in..., out...]` lies in blocks along one of its axes."""

    scheme: str
    shape: tuple[int, ...]  # dense
    axis: int  # the last input
    block: int  # inputs of one scale

    @property
    def packed(self) -> int:
        """Codes in a byte."""
        return 2 if self.scheme == "nf4" else 1

    @property
    def codes(self) -> tuple[int, ...]:
        return self._resized(self.shape[self.axis] // self.packed)

    @property
    def scales(self) -> tuple[int, ...]:
        return self._resized(self.shape[self.axis] // self.block)

    def _resized(self, n: int) -> tuple[int, ...]:
        return (*self.shape[: self.axis], n, *self.shape[self.axis + 1 :])


def layout_of(scheme: str, shape: Sequence[int], n_in: int) -> Layout | None:
    """None where the scheme does not fit: inputs that make no pairs, or no blocks worth a scale."""
    size = shape[n_in - 1]
    block = max(n for n in range(1, min(BLOCK[scheme], size) + 1) if size % n == 0)
    layout = Layout(scheme, tuple(shape), n_in - 1, block)
    return None if size % layout.packed or block < MIN_BLOCK else layout


def layout_of_parts(codes: jax.ShapeDtypeStruct, scales: jax.ShapeDtypeStruct) -> Layout:
    """That of a kernel whose codes and scales are so shaped, stacked over layers or not."""
    scheme = "int8" if codes.dtype == jnp.int8 else "nf4"
    axis = next(i for i, (c, s) in enumerate(zip(codes.shape, scales.shape, strict=True)) if c != s)
    shape = list(codes.shape)
    shape[axis] *= 2 if scheme == "nf4" else 1
    return Layout(scheme, tuple(shape), axis, shape[axis] // scales.shape[axis])


def layouts(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Layout]:
    """Of the quantised kernels among flat parameters, by the kernels' names."""
    names = [dense_name(name) for name in shapes if name.endswith(CODES)]
    return {
        name: layout_of_parts(shapes[f"{name}.codes"], shapes[f"{name}.scales"]) for name in names
    }


def dense_sizes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """How many numbers each parameter stands for, by its name; quantised kernels as dense ones."""
    plain = {name: x.size for name, x in shapes.items() if not is_part(name)}
    return plain | {name: math.prod(x.shape) for name, x in layouts(shapes).items()}


def quantise(values: AnyArray, layout: Layout, xp: ModuleType | Any = np) -> tuple[Any, Any]:
    """Codes and float32 scales of dense values.

    Args:
      xp: `numpy`, or `jax.numpy`.
    """
    axis, block = layout.axis, layout.block
    before, after = layout.shape[:axis], layout.shape[axis + 1 :]
    w = xp.asarray(values, dtype=xp.float32).reshape(*before, -1, block, *after)
    largest = xp.max(xp.abs(w), axis=axis + 1, keepdims=True)
    if layout.scheme == "int8":
        scale = xp.where(largest > 0, largest / 127, 1.0)
        codes = xp.round(w / scale).astype(xp.int8)
        return codes.reshape(layout.shape), scale.astype(xp.float32).reshape(layout.scales)
    scale = xp.where(largest > 0, largest, 1.0)
    between = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    codes = xp.searchsorted(xp.asarray(between), (w / scale).ravel())
    pairs = codes.astype(xp.uint8).reshape(*before, layout.codes[axis], 2, *after)
    low, high = (xp.take(pairs, i, axis=axis + 1) for i in (0, 1))
    return (low | (high << 4)).astype(xp.uint8), scale.astype(xp.float32).reshape(layout.scales)


def dequantise(
    codes: Array, scales: Array, layout: Layout, dtype: DTypeLike, levels: AnyArray = NF4_LEVELS
) -> Array:
    """The dense values; `levels` are those of nf4."""
    axis = layout.axis
    before, after = layout.shape[:axis], layout.shape[axis + 1 :]
    if layout.scheme == "nf4":
        pair = jnp.stack([codes & 15, codes >> 4], axis=axis + 1)
        values = _level(pair, levels)
    else:
        values = codes.astype(dtype)
    values = values.reshape(*before, -1, layout.block, *after).astype(dtype)
    scaled = values * jnp.expand_dims(scales, axis + 1).astype(dtype)
    return scaled.reshape(layout.shape)


def _level(codes: Array, levels: AnyArray) -> Array:
    """`levels[codes]` by comparisons, which are fused; a gather from a table is not."""
    left: list[Any] = [levels[i] for i in range(len(NF4))]
    for bit in range(4):
        odd = ((codes >> bit) & 1).astype(bool)
        left = [jnp.where(odd, left[i + 1], left[i]) for i in range(0, len(left), 2)]
    return left[0]


class QuantisedKernel(nnx.Module):
    """What a `Linear` multiplies by, of codes and scales. It does not learn."""

    def __init__(
        self,
        layout: Layout,
        axes: LogicalAxes,
        codes: AnyArray | Any,
        scales: AnyArray | Any,
        layer: int | None = None,
    ):
        self.layout = layout
        self.layer = layer  # whose codes and scales it reads, where these are of a stack of layers
        self.codes = nnx.Param(codes, logical_axes=axes)
        self.scales = nnx.Param(scales, logical_axes=axes)

    @classmethod
    def of(cls, kernel: DenseKernel, scheme: str, n_in: int) -> QuantisedKernel | None:
        """The same, in 8 or 4 bits; None where the scheme does not fit its shape."""
        layout = layout_of(scheme, kernel.shape, n_in)
        if layout is None:
            return None
        if only_shapes():
            kinds = jnp.int8 if scheme == "int8" else jnp.uint8, jnp.float32
            codes, scales = map(jax.ShapeDtypeStruct, (layout.codes, layout.scales), kinds)
        else:
            codes, scales = quantise(kernel.dense(), layout, jnp)
        return cls(layout, kernel.logical_axes, codes, scales)

    def of_layer(self, layer: int) -> QuantisedKernel:
        """One layer's kernel, where this one holds those of a stack of layers."""
        axes, codes, scales = self.logical_axes, self.codes[...], self.scales[...]
        return QuantisedKernel(self.layout, axes, codes, scales, layer)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def logical_axes(self) -> LogicalAxes:
        return self.codes.get_metadata()["logical_axes"]

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The values, made now."""
        parts = self.codes[...], self.scales[...]
        codes, scales = parts if self.layer is None else (x[self.layer] for x in parts)
        return dequantise(codes, scales, self.layout, dtype or jnp.float32)

    def matmul(self, x: Array, n_in: int, wide: DTypeLike | None = None) -> Array:
        """As `DenseKernel.matmul`; no gradient reaches codes or scales."""

        def product(x: Array) -> Array:
            how = _How(self.layout, n_in, jnp.dtype(wide or x.dtype), self.layer)
            return _product(how, x, self.codes[...], self.scales[...])

        return between_devices(self.codes, x, n_in, product)


class _How(NamedTuple):
    """What is static about a product."""

    layout: Layout
    n_in: int
    wide: jnp.dtype
    layer: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: _How, x: Array, codes: Array, scales: Array) -> Array:
    return rows_times(x, _dense_for(how, x, codes, scales), how.n_in, how.wide)


def _dense_for(how: _How, x: Array, codes: Array, scales: Array) -> Array:
    # Tied to x: what does not depend on a loop's turn would be made before the loop, and kept, and
    # dense values of all layers at once; so would nf4's levels, each as large as a kernel. In a
    # stack it is the layer's number that is tied, so that the codes are read where they lie.
    layer, levels, stacked = (
        jnp.int32(how.layer or 0),
        jnp.asarray(NF4_LEVELS),
        how.layer is not None,
    )
    if mesh_in_context() is not None:
        tied = jax.lax.optimization_barrier((x, layer, levels, codes, scales))
        x, layer, levels, codes, scales = tied
    else:  # XLA's CPU backend takes a barrier away too early; on a mesh this number would travel
        nothing = jax.lax.slice(x.reshape(-1), (0,), (1,))[0] * 0
        layer, levels = layer + nothing.astype(layer.dtype), levels + nothing.astype(levels.dtype)
        if not stacked:
            codes, scales = (x + nothing.astype(x.dtype) for x in (codes, scales))
    if stacked:
        codes, scales = (
            jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False) for x in (codes, scales)
        )
    return dequantise(codes, scales, how.layout, x.dtype, levels)


def _forward(how: _How, x: Array, codes: Array, scales: Array) -> tuple[Array, tuple]:
    # Of x only its dtype is needed, and nothing of the dense values.
    return _product(how, x, codes, scales), (jnp.zeros((0,), x.dtype), codes, scales)


def _backward(how: _How, kept: tuple, dy: Array) -> tuple[Array, Any, Array]:
    like, codes, scales = kept
    dense = _dense_for(how, dy.astype(like.dtype), codes, scales)
    inputs, outputs = how.layout.shape[: how.n_in], how.layout.shape[how.n_in :]
    rows = dy.shape[: dy.ndim - len(outputs)]
    flat = dy.reshape(-1, int(np.prod(outputs))).astype(like.dtype)
    dx = flat @ dense.reshape(int(np.prod(inputs)), -1).T
    zero = np.zeros(codes.shape, jax.dtypes.float0)
    return dx.reshape(*rows, *inputs), zero, jnp.zeros_like(scales)


_product.defvjp(_forward, _backward)
