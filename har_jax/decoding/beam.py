"""Beam search over captions, as transformers does it, on the `[B,R]` layout with R beams per image.

Beside the K beams that are being written lie the K best captions that have come to their end, by
log P(y) / length**length_penalty. Of the (1 + ends) K likeliest continuations of all beams, the K
likeliest that do not end are written on, so that an end takes no beam's place; those that do end
join the finished ones, if they are among the K likeliest continuations and better than the worst
that is kept. So does `transformers.GenerationMixin._beam_search` (5.24), and the same settings give
the same captions; `tests/families/test_beams_of_llava.py` compares them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from har_jax.decoding.loop import DECODE_SCOPE, Captions, decode, empty_captions, is_end
from har_jax.decoding.plan import DecodePlan
from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.sharding import constrain
from har_jax.types import Array, Bool, Float, Int

EarlyStopping = bool | Literal["never"]


class Finished(NamedTuple):
    """The best captions of each image that have come to their end, best first."""

    captions: Captions
    score_bk: Float[Array, "B K"]  # -inf where there is none yet
    open_b: Bool[Array, " B"]  # whether a beam may still become better than the worst of them

    @property
    def full_b(self) -> Bool[Array, " B"]:
        """Whether there are K."""
        return jnp.all(self.score_bk > -jnp.inf, axis=1)


class BeamState(NamedTuple):
    """The loop's carry, of K beams an image."""

    t: Int[Array, ""]
    x_bkd: Float[Array, "B K D"]  # the input of the next step
    total_bk: Float[Array, "B K"]  # log-probability of each beam, best first; -inf: there is none
    running: Captions  # what they have written; none has come to its end
    finished: Finished
    written: KVCache


class Continuations(NamedTuple):
    """The likeliest continuations of an image's beams by one token, best first."""

    origin_bc: Int[Array, "B C"]  # the beam
    token_bc: Int[Array, "B C"]
    logp_bc: Float[Array, "B C"]  # of the token
    total_bc: Float[Array, "B C"]  # of all tokens so far

    def rows(self, index_bk: Int[Array, "B K"]) -> Continuations:
        return Continuations(*(_rows(x, index_bk) for x in self))

    def captions(self, running: Captions, t: Int[Array, ""]) -> Captions:
        """What has then been written."""
        put = jax.lax.dynamic_update_index_in_dim
        tokens, _, logp = (_rows(x, self.origin_bc) for x in running)
        return Captions(
            tokens=put(tokens, self.token_bc, t, axis=2),
            lengths=jnp.full(self.token_bc.shape, t + 1, jnp.int32),
            logp=put(logp, self.logp_bc, t, axis=2),
        )


def beam_search(
    captioner: Captioner,
    cache: PrefixCache,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float | Float[Array, ""] = 1.0,
    early_stopping: EarlyStopping = False,
) -> Captions:
    """The `beams` captions kept for each image, best first, by log P(y) / length**length_penalty.

    The length counts the generated tokens, EOS included; a caption that is cut at `max_tokens`
    counts as one that has ended. One beam is greedy decoding. With `early_stopping="never"` and
    `length_penalty=0`, beams=V**T is exact search.

    Args:
      length_penalty: 1: the mean per token, as transformers' default; 0: the plain log-probability;
        more favours longer captions.
      early_stopping: when an image is done. False: when it has `beams` finished captions, and its
        best beam, if it ended here, would be no better than the worst of them. True: as soon as it
        has them. "never": when that beam could not be better at any length.
    """
    if beams < 1:
        raise UserError(f"beams is {beams}; it must be at least 1")
    if beams == 1:
        greedy = decode(captioner, cache, DecodePlan(max_tokens)).greedy
        assert greedy is not None
        return greedy
    captioner = captioner.for_decoding()
    b, dtype = len(cache.last_bd), cache.last_bd.dtype
    eos_ids = captioner.config.eos_ids
    n_best = min((1 + len(eos_ids)) * beams, beams * captioner.config.lm.vocab_size)
    # By how much a log-probability is divided at lengths 1 to T.
    divisors = jnp.arange(1.0, max_tokens + 1) ** length_penalty
    # With "never" a beam is judged by the best that could become of it: its log-probability only
    # falls, but where length is rewarded it may be divided by the most at the end.
    ahead = early_stopping == "never"

    def unfinished(finished: Finished) -> Bool[Array, " B"]:
        return finished.open_b & ~finished.full_b if early_stopping is True else finished.open_b

    def going_on(state: BeamState) -> Array:
        return (state.t < max_tokens) & jnp.any(unfinished(state.finished))

    def step(state: BeamState) -> BeamState:
        # 1. The likeliest continuations, and which of them come to their end.
        hidden, written = captioner.lm.step(state.x_bkd, cache.kv, state.written, state.t)
        logits = constrain(captioner.next_logits(hidden), "batch", None, "vocab")
        best = _continuations(logits, state.total_bk, n_best)
        ends = is_end(best.token_bc, eos_ids) | (state.t + 1 == max_tokens)

        # 2. The beams of the next step: each takes over what its origin had written and cached.
        total, index = _top_k(jnp.where(ends, -jnp.inf, best.total_bc), beams)
        next_beams = best.rows(index)
        origin = next_beams.origin_bc

        # 3. What has ended joins the finished captions, where the image is not done with.
        scores = best.total_bc[:, :beams] / divisors[state.t]
        joins = ends[:, :beams] & unfinished(state.finished)[:, None]
        ended = best.rows(jnp.broadcast_to(jnp.arange(beams), (b, beams)))
        kept = _keep_best(
            state.finished,
            ended.captions(state.running, state.t),
            jnp.where(joins, scores, -jnp.inf),
        )
        judged = jnp.where(length_penalty > 0, max_tokens - 1, state.t) if ahead else state.t
        hope = total[:, 0] / divisors[judged]
        still_open = state.finished.open_b & (hope > kept.score_bk[:, -1])
        return BeamState(
            t=state.t + 1,
            x_bkd=captioner.lm.embed(next_beams.token_bc, dtype),
            total_bk=total,
            running=next_beams.captions(state.running, state.t),
            finished=kept._replace(open_b=still_open),
            written=tuple(KV(_rows(k, origin), _rows(value, origin)) for k, value in written),
        )

    start = _start(captioner, cache, beams, max_tokens)
    with jax.named_scope(DECODE_SCOPE):
        return jax.lax.while_loop(going_on, step, start).finished.captions


def _start(captioner: Captioner, cache: PrefixCache, beams: int, max_tokens: int) -> BeamState:
    """Before the first token."""
    b, d = cache.last_bd.shape
    shape = (b, beams)
    empty = empty_captions(b, beams, max_tokens, captioner.config.eos_ids[0])
    return BeamState(
        t=jnp.int32(0),
        x_bkd=jnp.broadcast_to(cache.last_bd[:, None], (*shape, d)),
        # All beams start alike: only the first may branch, or they would stay copies.
        total_bk=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), shape),
        running=empty,
        finished=Finished(empty, jnp.full(shape, -jnp.inf), jnp.ones(b, bool)),
        written=captioner.lm.empty_cache(b, beams, max_tokens, cache.last_bd.dtype),
    )


def _continuations(
    logits: Float[Array, "B K V"], total_bk: Float[Array, "B K"], n: int
) -> Continuations:
    """The `n` likeliest of all beams' continuations."""
    b, k, v = logits.shape
    # Where the vocabulary is split, its logits come together for the choice, and no weight.
    logp_bkv = constrain(jax.nn.log_softmax(logits, axis=-1), "batch")
    total, flat = _top_k((total_bk[..., None] + logp_bkv).reshape(b, k * v), n)
    origin, token = flat // v, (flat % v).astype(jnp.int32)
    none = total == -jnp.inf  # continues no beam
    gained = jnp.where(none, -jnp.inf, total - _rows(total_bk, origin))
    return Continuations(origin, token, gained, total)


def _top_k(x: Float[Array, "B N"], k: int) -> tuple[Array, Array]:
    """The largest k of each row, and where they are. Behind a barrier: where XLA may join a slice
    of what is found to the search, it sorts whole rows, which took 40 times as long (on a CPU)."""
    values, index = jax.lax.optimization_barrier(jax.lax.top_k(x, k))
    return values, index


def _keep_best(finished: Finished, ended: Captions, score_bk: Float[Array, "B K"]) -> Finished:
    """The best of those that were kept and of others that have ended."""
    scores = jnp.concatenate([finished.score_bk, score_bk], axis=1)
    best, index = _top_k(scores, score_bk.shape[1])
    both = (jnp.concatenate(x, axis=1) for x in zip(finished.captions, ended, strict=True))
    return Finished(Captions(*(_rows(x, index) for x in both)), best, finished.open_b)


def _rows(x: Array, index_bk: Int[Array, "B K"]) -> Array:
    """Of `[B,R,...]`, the rows that each image's indices name."""
    index = index_bk.reshape(*index_bk.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)
