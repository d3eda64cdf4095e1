"""The decode loop: R captions of every image at once, greedy and sampled rows side by side."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.decoding.plan import DecodePlan
from har_jax.decoding.sampling import choose
from har_jax.models.attention import Cache
from har_jax.models.captioner import Captioner, Prefix
from har_jax.sharding import constrain
from har_jax.types import Array, Key


class Rollout(NamedTuple):
    """Written captions. A row of the greedy kind comes first, if the plan has one."""

    tokens: Array  # int32 [B,R,T]: up to and including EOS, then EOS again
    lengths: Array  # int32 [B,R]: tokens up to and including EOS, or T where none was written
    logp: Array  # float32 [B,R,T]: of each token under its row's policy; 0 after the end


class DecodeState(NamedTuple):
    """The loop's carry."""

    t: Array  # int32 []: tokens written so far
    x_brd: Array  # [B,R,D]: the input of the next step
    done_br: Array  # bool [B,R]: EOS was written
    rollout: Rollout
    written: Cache  # per layer K, V [B,R,T,Hkv,Dh], one slot per token


def decode(
    captioner: Captioner, cache: Prefix, plan: DecodePlan, key: Key[Array, ""] | None = None
) -> Rollout:
    """Writes `plan.rows` captions of each image in a single `lax.while_loop`.

    The loop ends when every row has written EOS or holds `plan.max_tokens` tokens. Step t draws by
    `fold_in(key, t)`; a plan without samples needs no key. A row depends on nothing but its own
    image, the key and its place in the batch, so a greedy row equals a run of greedy rows alone.
    """
    captioner = captioner.for_decoding()
    if key is None:
        if plan.samples:
            raise ValueError("a plan with samples needs a key")
        key = jax.random.key(0)
    b, r, t_max = cache.last_bd.shape[0], plan.rows, plan.max_tokens
    eos_id = captioner.config.lm.eos_token_id
    dtype = cache.last_bd.dtype

    def going_on(state: DecodeState) -> Array:
        return (state.t < t_max) & ~jnp.all(state.done_br)

    def step(state: DecodeState) -> DecodeState:
        hidden, written = captioner.lm.step(state.x_brd, cache.kv, state.written, state.t)
        logits = constrain(captioner.lm.logits(hidden), "batch")
        token, logp = choose(logits, plan, jax.random.fold_in(key, state.t))
        token = jnp.where(state.done_br, eos_id, token)
        old = state.rollout
        rollout = Rollout(
            tokens=jax.lax.dynamic_update_index_in_dim(old.tokens, token, state.t, axis=2),
            lengths=old.lengths + ~state.done_br,
            logp=jax.lax.dynamic_update_index_in_dim(
                old.logp, jnp.where(state.done_br, 0.0, logp), state.t, axis=2
            ),
        )
        return DecodeState(
            t=state.t + 1,
            x_brd=captioner.lm.embed(token, dtype),
            done_br=state.done_br | (token == eos_id),
            rollout=rollout,
            written=written,
        )

    empty = Rollout(
        tokens=jnp.full((b, r, t_max), eos_id, jnp.int32),
        lengths=jnp.zeros((b, r), jnp.int32),
        logp=jnp.zeros((b, r, t_max), jnp.float32),
    )
    start = DecodeState(
        t=jnp.int32(0),
        x_brd=jnp.broadcast_to(cache.last_bd[:, None], (b, r, cache.last_bd.shape[-1])),
        done_br=jnp.zeros((b, r), bool),
        rollout=jax.tree.map(lambda x: constrain(x, "batch"), empty),
        written=captioner.lm.empty_cache(b, r, t_max, dtype),
    )
    return jax.lax.while_loop(going_on, step, start).rollout
