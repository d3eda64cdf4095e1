"""Tables of positions of patches, resized for images of another size than they were learnt on."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from har_jax.types import Array, Float


def resized(table_sd: Float[Array, "S D"], grid: int, *, averaging: bool) -> Array:
    """A square table, row by row, as one of `grid` x `grid`: in float32, as `bicubic` says."""
    own = math.isqrt(len(table_sd))
    if own == grid:
        return table_sd
    resize = bicubic(grid, own, averaging=averaging)
    square_ijd = table_sd.astype(jnp.float32).reshape(own, own, -1)
    exact = jax.lax.Precision.HIGHEST
    made_abd = jnp.einsum("ai,bj,ijd->abd", resize, resize, square_ijd, precision=exact)
    return made_abd.reshape(grid * grid, -1).astype(table_sd.dtype)


def bicubic(size: int, of: int, *, averaging: bool) -> Float32[np.ndarray, "n m"]:
    """What each of `size` points takes of `of` ones along an axis, as PyTorch's `interpolate` in
    mode "bicubic" has it; `averaging` is its `antialias`.

    PyTorch's two kernels are cubic ones of a = -0.75 and, averaging, -0.5. The first takes what
    lies beyond the border for the border's own; the other leaves it out.
    """
    scale = of / size
    a, stretch = (-0.5, max(scale, 1.0)) if averaging else (-0.75, 1.0)
    centre_n = (np.arange(size) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    place_nk = np.floor(centre_n)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(place_nk - centre_n[:, None]) / stretch
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    weight_nk = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    if averaging:
        weight_nk = np.where((place_nk >= 0) & (place_nk < of), weight_nk, 0.0)
        weight_nk = weight_nk / weight_nk.sum(axis=1, keepdims=True)
    taken = np.zeros((size, of))
    places = np.clip(place_nk, 0, of - 1).astype(int)
    np.add.at(taken, (np.arange(size)[:, None], places), weight_nk)
    return taken.astype(np.float32)
