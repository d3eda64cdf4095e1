"""Beam search as ZeroCap's program does it, for B images at once; and the sampled choice.

Beams are ranked by their mean log-probability. A finished beam goes on with token 0 at no cost and
keeps its length; nothing is dropped, and the search ends when every beam has finished.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.types import Array, Bool, Float, Int, Key


class Beams(NamedTuple):
    """K texts of each image, n tokens each so far.

    `sums` are log-probabilities of the texts; `lengths` count tokens, the end token included and
    what follows it not; `source` tells from which beam of the step before each one went on.
    """

    tokens_bkn: Int[Array, "B K n"]
    sums_bk: Float[Array, "B K"]
    lengths_bk: Int[Array, "B K"]
    ended_bk: Bool[Array, "B K"]
    source_bk: Int[Array, "B K"]

    @property
    def scores_bk(self) -> Float[Array, "B K"]:
        """Mean log-probability of a token."""
        return self.sums_bk / self.lengths_bk


def first(log_p_b1v: Float[Array, "B 1 V"], beams: int, end_id: int) -> Beams:
    """The K likeliest first tokens."""
    sums_bk, tokens_bk = jax.lax.top_k(log_p_b1v[:, 0], beams)
    source = jnp.zeros_like(tokens_bk)
    ended = tokens_bk == end_id
    return Beams(tokens_bk[..., None], sums_bk, jnp.ones_like(tokens_bk), ended, source)


def advance(beams: Beams, log_p_bkv: Float[Array, "B K V"], end_id: int) -> Beams:
    """The K best texts with one more token."""
    b, k, v = log_p_bkv.shape
    # 1. A finished text goes on with token 0 alone.
    idle_v = jnp.where(jnp.arange(v) == 0, 0.0, -jnp.inf)
    log_p_bkv = jnp.where(beams.ended_bk[..., None], idle_v, log_p_bkv)
    # 2. The K best of all K·V continuations, by their means.
    lengths_bk = beams.lengths_bk + ~beams.ended_bk
    means = (beams.sums_bk[..., None] + log_p_bkv) / lengths_bk[..., None]
    means_bk, places = jax.lax.top_k(means.reshape(b, k * v), k)
    source_bk, next_bk = places // v, places % v

    # 3. Each of them takes over what its beam had.
    def of(x: Array) -> Array:
        index = source_bk.reshape(b, k, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    lengths_bk = of(lengths_bk)
    tokens = jnp.concatenate([of(beams.tokens_bkn), next_bk[..., None]], axis=2)
    ended_bk = of(beams.ended_bk) | (next_bk == end_id)
    return Beams(tokens, means_bk * lengths_bk, lengths_bk, ended_bk, source_bk)


def guided_log_p(
    log_p0_nv: Float[Array, "N V"],
    ids_nc: Int[Array, "N C"],
    cos_nc: Float[Array, "N C"],
    scale: float,
) -> Float[Array, "N C"]:
    """The sampled method's distribution over its candidates: log p + λ · 100 cos, normalised."""
    log_p_nc = jnp.take_along_axis(log_p0_nv, ids_nc, axis=1)
    return jax.nn.log_softmax(log_p_nc + scale * 100 * cos_nc)


def draw(
    keys_n: Key[Array, " N"], ids_nc: Int[Array, "N C"], log_p_nc: Float[Array, "N C"]
) -> Int[Array, " N"]:
    """A candidate of each row, each by a key of its own."""
    chosen_n = jax.vmap(jax.random.categorical)(keys_n, log_p_nc)
    return jnp.take_along_axis(ids_nc, chosen_n[:, None], axis=1)[:, 0]
