"""Attention of R captions over one shared prefix."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from har_jax.types import Array, Float, Int

QUERY_BLOCK = 64
"""A causal sequence is read in blocks of at least so many queries, each with the keys up to its
end: in four of them, 5/8 of the products are made."""

MAX_BLOCKS = 4


KERNELS = {"cudnn": "gpu", "splash": "tpu"}
"""Kernels of JAX's for `attend_alone`, and the platform of the devices that each computes on."""


class KV(NamedTuple):
    """Keys (rotated, where positions are) and values of one layer, heads before places:
    `[B,K,P,H]` of prefixes, `[B,R,K,T,H]` of captions.

    So laid out, a product over heads reads each of them in one piece.
    """

    k: Array
    v: Array

    @property
    def length(self) -> int:
        """P, or T: how many places there are."""
        return self.k.shape[-2]

    def with_slot(self, new: KV, slot: Int[Array, ""]) -> KV:
        """With the keys and values of one token written into a place; a loop updates them there."""
        axis = self.k.ndim - 2
        put, pairs = jax.lax.dynamic_update_slice_in_dim, zip(self, new, strict=True)
        return KV(*(put(old, value.astype(old.dtype), slot, axis=axis) for old, value in pairs))


KVCache = tuple[KV, ...]
"""One `KV` per layer. Kept apart per layer: a stacked cache is copied by every step of a loop."""


def heads_first(x: Float[Array, "*batch T heads H"]) -> Float[Array, "*batch heads T H"]:
    """Keys or values as `KV` keeps them."""
    return jnp.swapaxes(x, -3, -2)


def attend_alone(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    *,
    causal: bool,
    window: int | None = None,
    kernel: str,
) -> Float[Array, "B T N H"]:
    """Attention of sequences that read nothing but themselves, by a kernel of JAX's.

    Args:
      kernel: "cudnn" (NVIDIA GPUs, float16 or bfloat16, heads of at most 256 and a multiple of 8),
        "splash" (TPUs), or "xla".
    """
    if kernel == "splash":
        # Not before it is wanted: Pallas takes a second to be imported.
        from har_jax.models.splash import splash_attention

        return splash_attention(q_btnh, k_btkh, v_btkh, causal=causal, window=window)
    near = None if window is None or window >= q_btnh.shape[1] else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q_btnh,
        k_btkh,
        v_btkh,
        is_causal=causal,
        local_window_size=near,
        implementation=cast(Any, kernel),
    )


def attend(
    q_brtnh: Float[Array, "B R T N H"],
    positions_t: Int[Array, " T"],
    shared: KV | None,
    own: KV,
    window: int | Int[Array, ""] | None,
) -> Float[Array, "B R T N H"]:
    """Softmax over the shared prefix (positions 0..P-1) and the caption's own keys (P..P+S-1).

    A key is seen when it is not in the future and, with a sliding window w, fewer than w positions
    back; slots of a cache that are not yet written lie in the future, so one rule masks both. The
    scores of the two parts are made apart and normalised together: no key of the prefix is copied
    for its R captions.
    """
    b, r, t, n, h = q_brtnh.shape
    n_kv, s = own.k.shape[2:4]
    if shared is not None and not shared.length:
        shared = None  # of a prefix of one token, which the captions read first
    g, p = n // n_kv, 0 if shared is None else shared.length
    if isinstance(window, int) and window >= p + s:
        window = None  # no two places are so far apart

    # 1. Queries by the key-value head that they read, N = K groups of G: rows of one product.
    q = (q_brtnh * h**-0.5).reshape(b, r, t, n_kv, g, h).transpose(0, 1, 3, 4, 2, 5)

    # 2. A sequence that reads nothing but itself: blocks of queries, with the keys up to their end.
    n_blocks = min(MAX_BLOCKS, t // QUERY_BLOCK) if s == t and shared is None else 1
    parts = []
    for i in range(max(n_blocks, 1)):
        start, stop = i * t // max(n_blocks, 1), (i + 1) * t // max(n_blocks, 1)
        keys = own if n_blocks <= 1 else KV(own.k[:, :, :, :stop], own.v[:, :, :, :stop])
        some = q[..., start:stop, :]
        parts.append(_attend(some, positions_t[start:stop], shared, keys, window))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)

    # 3. Back to the places of the queries.
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(b, r, t, n, h)


def _attend(
    q_brkgth: Float[Array, "B R K G T H"],
    positions_t: Int[Array, " T"],
    shared: KV | None,
    own: KV,
    window: int | Int[Array, ""] | None,
) -> Float[Array, "B R K G T H"]:
    """`attend`, of queries that are scaled and grouped."""
    b, r, n_kv, g, t, h = q_brkgth.shape
    f32, dtype = jnp.float32, q_brkgth.dtype
    p, s = 0 if shared is None else shared.length, own.length

    def masked(scores: Float[Array, "*heads G T S"], keys: Int[Array, " S"], causal: bool) -> Array:
        distance = positions_t[:, None] - keys[None, :]
        seen = distance >= 0 if causal else jnp.ones((), bool)
        seen = seen if window is None else seen & (distance < window)
        return jnp.where(seen, scores, jnp.finfo(f32).min)

    def as_prefix(x: Float[Array, "B R K M L"]) -> Float[Array, "B K N L"]:  # all rows of a head
        return jnp.swapaxes(x, 1, 2).reshape(b, n_kv, r * g * t, x.shape[-1])

    def as_own(x: Float[Array, "B K N L"]) -> Float[Array, "B R K M L"]:
        return jnp.swapaxes(x.reshape(b, n_kv, r, g * t, x.shape[-1]), 1, 2)

    # 1. Scores of the caption's own keys, and the largest of all scores, which softmax subtracts.
    q_own = q_brkgth.reshape(b, r, n_kv, g * t, h)
    s_own = jnp.einsum("brkmh,brksh->brkms", q_own, own.k, preferred_element_type=f32)
    s_own = masked(s_own.reshape(b, r, n_kv, g, t, s), p + jnp.arange(s), True)
    s_own = s_own.reshape(b, r, n_kv, g * t, s)
    top = jnp.max(s_own, axis=-1, keepdims=True)

    # 2. Scores of the prefix: all captions of an image are rows of one product. It lies behind.
    s_shared = None
    if shared is not None:
        q_shared = as_prefix(q_own)
        s_shared = jnp.einsum("bknh,bkph->bknp", q_shared, shared.k, preferred_element_type=f32)
        if window is not None:
            by_place = s_shared.reshape(b, n_kv, r, g, t, p)
            s_shared = masked(by_place, jnp.arange(p), False).reshape(s_shared.shape)
        top = jnp.maximum(top, as_own(jnp.max(s_shared, axis=-1, keepdims=True)))
    top = jax.lax.stop_gradient(top)

    # 3. Weighted sums of the values, not yet normalised, and the sum of the weights.
    e_own = jnp.exp(s_own - top)
    total = jnp.sum(e_own, axis=-1, keepdims=True)
    e_own = e_own.astype(dtype)
    out = jnp.einsum("brkms,brksh->brkmh", e_own, own.v, preferred_element_type=f32)
    if shared is not None and s_shared is not None:
        e_shared = jnp.exp(s_shared - as_prefix(top))
        total += as_own(jnp.sum(e_shared, axis=-1, keepdims=True))
        e_shared = e_shared.astype(dtype)
        out_shared = jnp.einsum("bknp,bkph->bknh", e_shared, shared.v, preferred_element_type=f32)
        out += as_own(out_shared)

    # 4. Normalised once for both parts.
    return (out / total).astype(dtype).reshape(b, r, n_kv, g, t, h)
