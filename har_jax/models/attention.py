"""Attention of R captions over one shared prefix, and rotary positions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.types import Array, Float, Int


class KV(NamedTuple):
    """Keys (rotated, where positions are) and values of one layer: `[B,P,K,H]` of prefixes,
    `[B,R,T,K,H]` of captions."""

    k: Array
    v: Array

    @property
    def length(self) -> int:
        """P, or T: how many places there are."""
        return self.k.shape[-3]

    def with_slot(self, new: KV, slot: Int[Array, ""]) -> KV:
        """With the keys and values of one token written into a place; a loop updates them there."""
        axis = self.k.ndim - 3
        put, pairs = jax.lax.dynamic_update_slice_in_dim, zip(self, new, strict=True)
        return KV(*(put(old, value.astype(old.dtype), slot, axis=axis) for old, value in pairs))


KVCache = tuple[KV, ...]
"""One `KV` per layer. Kept apart per layer: a stacked cache is copied by every step of a loop."""


def rotary(
    x: Float[Array, "*batch T heads H"], positions: Int[Array, " T"], theta: float
) -> Float[Array, "*batch T heads H"]:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies  # [T,1,H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    q_brtnh: Float[Array, "B R T N H"],
    positions_t: Int[Array, " T"],
    shared: KV | None,
    own: KV,
    window: int | None,
) -> Float[Array, "B R T N H"]:
    """Softmax over the shared prefix (positions 0..P-1) and the caption's own keys (P..P+S-1).

    A key is seen when it is not in the future and, with a sliding window w, fewer than w positions
    back; slots of a cache that are not yet written lie in the future, so one rule masks both. The
    scores of the two parts are made apart and normalised together: no key of the prefix is copied
    for its R captions.
    """
    b, r, t, n, h = q_brtnh.shape
    n_kv = own.k.shape[-2]
    f32, dtype = jnp.float32, q_brtnh.dtype
    prefix_length = 0 if shared is None else shared.length

    def masked(scores: Float[Array, "B K G R T S"], keys: Int[Array, " S"]) -> Array:
        distance = positions_t[:, None] - keys[None, :]
        seen = distance >= 0
        seen = seen if window is None else seen & (distance < window)
        return jnp.where(seen, scores, jnp.finfo(f32).min)

    # 1. Queries by the key-value head that they read: N = K groups of G.
    q = (q_brtnh * h**-0.5).reshape(b, r, t, n_kv, n // n_kv, h)

    # 2. Scores of both parts, and the largest of them, which softmax subtracts.
    s_own = jnp.einsum("brtkgh,brskh->bkgrts", q, own.k, preferred_element_type=f32)
    s_own = masked(s_own, prefix_length + jnp.arange(own.k.shape[2]))
    top = jnp.max(s_own, axis=-1, keepdims=True)
    s_shared = None
    if shared is not None:
        s_shared = jnp.einsum("brtkgh,bpkh->bkgrtp", q, shared.k, preferred_element_type=f32)
        s_shared = masked(s_shared, jnp.arange(prefix_length))
        top = jnp.maximum(top, jnp.max(s_shared, axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)

    # 3. Weighted sums of the values, not yet normalised, and the sum of the weights.
    e_own = jnp.exp(s_own - top)
    total = jnp.sum(e_own, axis=-1)
    out = jnp.einsum("bkgrts,brskh->brtkgh", e_own.astype(dtype), own.v, preferred_element_type=f32)
    if shared is not None and s_shared is not None:
        e_shared = jnp.exp(s_shared - top)
        total += jnp.sum(e_shared, axis=-1)
        e_shared = e_shared.astype(dtype)
        out += jnp.einsum("bkgrtp,bpkh->brtkgh", e_shared, shared.v, preferred_element_type=f32)

    # 4. Normalised once for both parts.
    total_brtkg = jnp.transpose(total, (0, 3, 4, 1, 2))
    return (out / total_brtkg[..., None]).astype(dtype).reshape(b, r, t, n, h)
