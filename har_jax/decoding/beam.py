"""Beam search over captions, on the `[B,R]` layout with R beams per image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.decoding.loop import DECODE_SCOPE, Captions, append, empty_captions, is_end
from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.sharding import constrain
from har_jax.types import Array, Bool, Float, Int


class BeamState(NamedTuple):
    """The loop's carry, of R beams an image."""

    t: Int[Array, ""]
    x_brd: Float[Array, "B R D"]  # the input of the next step
    done_br: Bool[Array, "B R"]
    total_br: Float[Array, "B R"]  # log-probability of each beam
    captions: Captions
    written: KVCache


def beam_search(
    captioner: Captioner,
    cache: PrefixCache,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
) -> Captions:
    """The `beams` captions kept for each image, best first.

    Beams are pruned by their log-probability; a finished beam stays among them with its own. The
    final order is by log P(y) / length**length_penalty (1.0: mean per token, as transformers'
    default; 0.0: the plain log-probability, with which beams=V**T is exact search).
    """
    if beams < 1:
        raise UserError(f"beams is {beams}; it must be at least 1")
    captioner = captioner.for_decoding()
    b, d = cache.last_bd.shape
    eos_ids, v = captioner.config.eos_ids, captioner.config.lm.vocab_size
    dtype = cache.last_bd.dtype

    def going_on(state: BeamState) -> Array:
        return (state.t < max_tokens) & ~jnp.all(state.done_br)

    def step(state: BeamState) -> BeamState:
        # 1. What every token would make of every beam. A finished beam goes on in one way only: EOS
        #    again, at no cost.
        hidden, written = captioner.lm.step(state.x_brd, cache.kv, state.written, state.t)
        logits = constrain(captioner.next_logits(hidden), "batch", None, "vocab")
        # Where the vocabulary is split, its logits come together for the choice, and no weight.
        logp_brv = constrain(jax.nn.log_softmax(logits, axis=-1), "batch")
        frozen = jnp.where(jnp.arange(v) == eos_ids[0], 0.0, -jnp.inf)
        logp_brv = jnp.where(state.done_br[..., None], frozen, logp_brv)

        # 2. The best of all beams' continuations, and the beams that they continue.
        totals = (state.total_br[..., None] + logp_brv).reshape(b, beams * v)
        total, flat = jax.lax.top_k(totals, beams)
        origin, token = flat // v, (flat % v).astype(jnp.int32)
        done = _rows(state.done_br, origin)
        gained = total - _rows(state.total_br, origin)

        # 3. Each new beam takes over what its origin had written and cached.
        captions = Captions(*(_rows(x, origin) for x in state.captions))
        return BeamState(
            t=state.t + 1,
            x_brd=captioner.lm.embed(token, dtype),
            done_br=done | is_end(token, eos_ids),
            total_br=total,
            captions=append(captions, state.t, token, gained, done),
            written=tuple(KV(_rows(k, origin), _rows(value, origin)) for k, value in written),
        )

    shape = (b, beams)
    start = BeamState(
        t=jnp.int32(0),
        x_brd=jnp.broadcast_to(cache.last_bd[:, None], (*shape, d)),
        done_br=jnp.zeros(shape, bool),
        # All beams start alike: only the first may branch, or they would stay copies.
        total_br=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), shape),
        captions=empty_captions(b, beams, max_tokens, eos_ids[0]),
        written=captioner.lm.empty_cache(b, beams, max_tokens, dtype),
    )
    with jax.named_scope(DECODE_SCOPE):
        end = jax.lax.while_loop(going_on, step, start)
    score = end.total_br / jnp.maximum(end.captions.lengths, 1) ** length_penalty
    order = jnp.argsort(-score, axis=1)
    return Captions(*(_rows(x, order) for x in end.captions))


def _rows(x: Array, index_br: Int[Array, "B R"]) -> Array:
    """Of `[B,R,...]`, the rows that each image's indices name."""
    index = index_br.reshape(*index_br.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)
