"""Rotary positions (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Hugging Face."""

from __future__ import annotations

import math

import jax.numpy as jnp

from har_jax.models.decoders.options import Options, RopeScaling
from har_jax.types import Array, Bool, Float, Int


def frequencies(config: Options) -> Float[Array, " half"]:
    """How far each pair of numbers turns from one position to the next."""
    half = config.turned // 2
    plain = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return plain if config.rope_scaling is None else _scaled(plain, config.rope_scaling)


def _scaled(plain: Float[Array, " half"], by: RopeScaling) -> Float[Array, " half"]:
    """Frequencies by which more positions turn as far as fewer did.

    "linear" (Chen et al. 2023, arXiv:2306.15595) divides all of them. "llama3" (Llama 3.1's
    reference code) divides those that turn round less than `low_freq_factor` times within the
    positions of the first training, leaves those that do more than `high_freq_factor` times, and
    goes over from one to the other between.
    """
    if by.rope_type == "linear":
        return plain / by.factor
    rounds = by.original_max_position_embeddings * plain / (2 * math.pi)
    between = (rounds - by.low_freq_factor) / (by.high_freq_factor - by.low_freq_factor)
    kept = jnp.clip(between, 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / by.factor


def angles(config: Options, positions_t: Int[Array, " T"]) -> Float[Array, "T 1 half"]:
    """By which `rotate` turns the heads at each position."""
    return positions_t.astype(jnp.float32)[:, None, None] * frequencies(config)


def rotate(
    x: Float[Array, "*batch T heads H"],
    angles_t1h: Float[Array, "T 1 half"],
    turns: bool | Bool[Array, ""] = True,
) -> Float[Array, "*batch T heads H"]:
    """Turns the pairs (i, half + i) of the first numbers of each head; the rest stays.

    Args:
      turns: whether this layer turns at all; an angle of 0 changes no bit.
    """
    if turns is False:
        return x
    if turns is not True:
        angles_t1h = jnp.where(turns, angles_t1h, 0.0)
    turned = 2 * angles_t1h.shape[-1]
    sin, cos = jnp.sin(angles_t1h), jnp.cos(angles_t1h)
    x1, x2 = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    rotated = rotated.astype(x.dtype)
    if turned == x.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x[..., turned:]], axis=-1)
