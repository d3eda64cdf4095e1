"""The decode loop: R captions of every image at once, greedy and sampled rows side by side."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.decoding.plan import DecodePlan
from har_jax.decoding.sampling import choose
from har_jax.models.attention import KVCache
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.sharding import constrain
from har_jax.types import Array, Bool, Float, Int, Key

DECODE_SCOPE = "decode"
"""The name of the loop's operations in profiles and compiled programs."""


class Captions(NamedTuple):
    """Written captions, R of each image."""

    tokens: Int[Array, "B R T"]  # up to and including EOS, then EOS again
    lengths: Int[Array, "B R"]  # tokens up to and including EOS, or T where none was written
    logp: Float[Array, "B R T"]  # of each token under its row's policy; 0 after the end

    def rows(self, first: int, stop: int | None = None) -> Captions:
        """Some of the R captions of every image."""
        return Captions(*(x[:, first:stop] for x in self))


class Rollout(NamedTuple):
    """What a plan asked for: the greedy caption (R=1) and the K sampled ones, each where it has
    some."""

    greedy: Captions | None
    samples: Captions | None

    @property
    def together(self) -> Captions:
        """All rows, the greedy one first."""
        kinds = [captions for captions in self if captions is not None]
        return Captions(*(jnp.concatenate(parts, axis=1) for parts in zip(*kinds, strict=True)))


class DecodeState(NamedTuple):
    """The loop's carry."""

    t: Int[Array, ""]  # tokens written so far
    x_brd: Float[Array, "B R D"]  # the input of the next step
    done_br: Bool[Array, "B R"]  # EOS was written
    captions: Captions
    written: KVCache  # per layer K, V [B,R,K,T,H], one slot per token


def is_end(tokens: Int[Array, "*rows"], eos_ids: tuple[int, ...]) -> Bool[Array, "*rows"]:
    """Whether a token ends its caption."""
    return jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))


def empty_captions(b: int, r: int, t: int, fill: int) -> Captions:
    """Before the first token: filled with an EOS, of length 0."""
    return Captions(
        tokens=jnp.full((b, r, t), fill, jnp.int32),
        lengths=jnp.zeros((b, r), jnp.int32),
        logp=jnp.zeros((b, r, t), jnp.float32),
    )


def append(
    captions: Captions,
    t: Int[Array, ""],
    token_br: Int[Array, "B R"],
    logp_br: Float[Array, "B R"],
    done_br: Bool[Array, "B R"],
) -> Captions:
    """With token t of every caption; one that is done stays as long as it was."""
    put = jax.lax.dynamic_update_index_in_dim
    return Captions(
        tokens=put(captions.tokens, token_br, t, axis=2),
        lengths=captions.lengths + ~done_br,
        logp=put(captions.logp, jnp.where(done_br, 0.0, logp_br), t, axis=2),
    )


def decode(
    captioner: Captioner, cache: PrefixCache, plan: DecodePlan, key: Key[Array, ""] | None = None
) -> Rollout:
    """Writes `plan.rows` captions of each image in a single `lax.while_loop`.

    The loop ends when every row has written EOS or holds `plan.max_tokens` tokens. Step t draws by
    `fold_in(key, t)`; a plan without samples needs no key. A row depends on nothing but its own
    image, the key and its place in the batch, so a greedy row equals a run of greedy rows alone.

    Args:
      captioner: of `decoding.weights.for_decoding`, where weights are not in place already.
    """
    captioner = captioner.for_decoding()
    if key is None:
        if plan.samples:
            raise ValueError("a plan with samples needs a key")
        key = jax.random.key(0)
    b, r, t_max = cache.last_bd.shape[0], plan.rows, plan.max_tokens
    eos_ids = captioner.config.eos_ids
    dtype = cache.last_bd.dtype

    def going_on(state: DecodeState) -> Array:
        return (state.t < t_max) & ~jnp.all(state.done_br)

    def step(state: DecodeState) -> DecodeState:
        # 1. One token of every row through the decoder.
        hidden, written = captioner.lm.step(state.x_brd, cache.kv, state.written, state.t)
        logits = constrain(captioner.next_logits(hidden), "batch", None, "vocab")
        # 2. The next token, by argmax or by a draw; a row that is done goes on with EOS.
        token, logp = choose(logits, plan, jax.random.fold_in(key, state.t))
        token = jnp.where(state.done_br, eos_ids[0], token)
        # 3. Written down, and read in the next step.
        return DecodeState(
            t=state.t + 1,
            x_brd=captioner.lm.embed(token, dtype),
            done_br=state.done_br | is_end(token, eos_ids),
            captions=append(state.captions, state.t, token, logp, state.done_br),
            written=written,
        )

    empty = empty_captions(b, r, t_max, eos_ids[0])
    start = DecodeState(
        t=jnp.int32(0),
        x_brd=jnp.broadcast_to(cache.last_bd[:, None], (b, r, cache.last_bd.shape[-1])),
        done_br=jnp.zeros((b, r), bool),
        captions=Captions(*(constrain(x, "batch") for x in empty)),
        written=captioner.lm.empty_cache(b, r, t_max, dtype),
    )
    with jax.named_scope(DECODE_SCOPE):
        captions = jax.lax.while_loop(going_on, step, start).captions
    first = int(plan.greedy)
    return Rollout(
        captions.rows(0, 1) if plan.greedy else None, captions.rows(first) if plan.samples else None
    )
