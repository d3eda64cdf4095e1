"""Beam search over captions, on the `[B,R]` layout with R beams per image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.decoding.loop import Rollout
from har_jax.errors import UserError
from har_jax.models.attention import KV, Cache
from har_jax.models.captioner import Captioner, Prefix
from har_jax.types import Array


class BeamState(NamedTuple):
    t: Array  # int32 []
    x_brd: Array  # [B,R,D]: the input of the next step
    done_br: Array  # bool [B,R]
    total_br: Array  # float32 [B,R]: log-probability of each beam
    rollout: Rollout
    written: Cache


def beam_search(
    captioner: Captioner,
    cache: Prefix,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
) -> Rollout:
    """The `beams` captions kept for each image, best first.

    Beams are pruned by their log-probability; a finished beam stays among them with its own. The
    final order is by log P(y) / length**length_penalty (1.0: mean per token, as transformers'
    default; 0.0: the plain log-probability, with which beams=V**T is exact search).
    """
    if beams < 1:
        raise UserError(f"beams is {beams}; it must be at least 1")
    captioner = captioner.for_decoding()
    b, d = cache.last_bd.shape
    eos_id, v = captioner.config.lm.eos_token_id, captioner.config.lm.vocab_size
    dtype = cache.last_bd.dtype

    def going_on(state: BeamState) -> Array:
        return (state.t < max_tokens) & ~jnp.all(state.done_br)

    def step(state: BeamState) -> BeamState:
        hidden, written = captioner.lm.step(state.x_brd, cache.kv, state.written, state.t)
        logp_brv = jax.nn.log_softmax(captioner.lm.logits(hidden), axis=-1)
        # A finished beam goes on in one way only: EOS again, at no cost.
        frozen = jnp.where(jnp.arange(v) == eos_id, 0.0, -jnp.inf)
        logp_brv = jnp.where(state.done_br[..., None], frozen, logp_brv)
        totals = (state.total_br[..., None] + logp_brv).reshape(b, beams * v)
        total, flat = jax.lax.top_k(totals, beams)
        origin, token = flat // v, (flat % v).astype(jnp.int32)

        def follow(x: Array) -> Array:
            index = origin.reshape(b, beams, *[1] * (x.ndim - 2))
            return jnp.take_along_axis(x, index, axis=1)

        old = jax.tree.map(follow, state.rollout)
        done = follow(state.done_br)
        step_logp = total - follow(state.total_br)
        rollout = Rollout(
            tokens=jax.lax.dynamic_update_index_in_dim(old.tokens, token, state.t, axis=2),
            lengths=old.lengths + ~done,
            logp=jax.lax.dynamic_update_index_in_dim(
                old.logp, jnp.where(done, 0.0, step_logp), state.t, axis=2
            ),
        )
        return BeamState(
            t=state.t + 1,
            x_brd=captioner.lm.embed(token, dtype),
            done_br=done | (token == eos_id),
            total_br=total,
            rollout=rollout,
            written=tuple(KV(follow(k), follow(value)) for k, value in written),
        )

    shape = (b, beams)
    start = BeamState(
        t=jnp.int32(0),
        x_brd=jnp.broadcast_to(cache.last_bd[:, None], (*shape, d)),
        done_br=jnp.zeros(shape, bool),
        # All beams start alike: only the first may branch, or they would stay copies.
        total_br=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), shape),
        rollout=Rollout(
            tokens=jnp.full((*shape, max_tokens), eos_id, jnp.int32),
            lengths=jnp.zeros(shape, jnp.int32),
            logp=jnp.zeros((*shape, max_tokens), jnp.float32),
        ),
        written=captioner.lm.empty_cache(b, beams, max_tokens, dtype),
    )
    end = jax.lax.while_loop(going_on, step, start)
    score = end.total_br / jnp.maximum(end.rollout.lengths, 1) ** length_penalty
    order = jnp.argsort(-score, axis=1)
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, order.reshape(b, beams, *[1] * (x.ndim - 2)), axis=1),
        end.rollout,
    )
