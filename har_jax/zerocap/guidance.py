"""The inner piece of ZeroCap: how one word's distribution is moved towards an image.

All functions are pure and jitted by their caller. N rows are the beams of all images together;
each row has a text of its own, hence keys and values of its own. Axes beside those of
`har_jax.types`: C candidates, S places of a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.models.attention import KV, KVCache
from har_jax.models.decoders.gpt2 import GPT2
from har_jax.types import AnyArray, Array, Bool, Float, Int
from har_jax.zerocap.settings import Guidance

_NEVER = -1e9  # a logit; finite, so that p log p is 0 and no NaN
_TINY = 1e-15  # keeps a gradient of zero from dividing by zero; the program's


class Context(NamedTuple):
    """A step before its word is chosen.

    `cache` holds the keys and values of all tokens but the last, and room for more; `last` is the
    last token, at position `t`. `log_p0` is what the language model alone says next.
    """

    last_n: Int[Array, " N"]
    t: Int[Array, ""]
    cache: KVCache
    log_p0_nv: Float[Array, "N V"]


class Steered(NamedTuple):
    """Where the iterations stand.

    `delta` is what has been added to the cache; `done` counts iterations. `ids` are the candidates
    of the last look, and `missing` says that the cosine of one of them is not known yet: then
    nothing was moved, and the iterations go on from here once it is.
    """

    delta: KVCache
    done: Int[Array, ""]
    ids_nc: Int[Array, "N C"]
    missing: Bool[Array, ""]


Read = Callable[[Int[Array, " N"], Int[Array, ""], KVCache], tuple[Array, KVCache]]
"""`read` of one language model."""


def read(
    lm: GPT2, no_token_v: Bool[AnyArray, " V"], last_n: AnyArray, t: Array, cache: KVCache
) -> tuple[Float[Array, "N V"], KVCache]:
    """Logits of the next token, and the cache with the last token in its place.

    Args:
      no_token_v: rows of the output layer beyond the tokenizer, which are never chosen.
    """
    hidden_nd, cache = lm.step(lm.embed(last_n), cache, t)
    return jnp.where(no_token_v, _NEVER, lm.logits(hidden_nd)), cache


def added(cache: KVCache, delta: KVCache) -> KVCache:
    return jax.tree.map(jnp.add, cache, delta)


def steer(
    read: Read, how: Guidance, context: Context, cos_nv: Float[Array, "N V"], at: Steered
) -> Steered:
    """Iterations until all are done, or a candidate turns up whose cosine is NaN in `cos_nv`.

    In each one the C likeliest tokens are candidates; the loss is λ CE(q, p) + μ KL(p ‖ p0), where
    q is CLIP's softmax over the candidates' cosines (eq. 1 to 5 of the article).
    """

    def log_p(delta: KVCache) -> Float[Array, "N V"]:
        cache = added(context.cache, delta)
        return jax.nn.log_softmax(read(context.last_n, context.t, cache)[0])

    def open_(at: Steered) -> Bool[Array, ""]:
        return (at.done < how.iterations) & ~at.missing

    def iterate(at: Steered) -> Steered:
        # 1. What the model says with the cache as it is now, and the tokens that CLIP is to judge.
        log_p_nv, back = jax.vjp(log_p, at.delta)
        ids_nc = jax.lax.top_k(log_p_nv, how.candidates)[1]
        cos_nc = jnp.take_along_axis(cos_nv, ids_nc, axis=1)
        missing = jnp.isnan(cos_nc).any()
        # 2. The gradient of the loss, back through the language model to the cache.
        target_nc = jax.nn.softmax(cos_nc / how.clip_temperature)

        def loss(log_p_nv: Float[Array, "N V"]) -> Float[Array, ""]:
            parts = losses(log_p_nv, context.log_p0_nv, ids_nc, target_nc)
            return jnp.sum(how.clip_scale * parts[0] + how.fluency_scale * parts[1])

        (gradient,) = back(jax.grad(loss)(log_p_nv))
        # 3. One step, unless a cosine was missing: then this look is taken again.
        moved = jax.tree.map(
            lambda old, g: jnp.where(missing, old, old - how.step_size * g),
            at.delta,
            normalised(gradient, how),
        )
        return Steered(moved, at.done + jnp.where(missing, 0, 1), ids_nc, missing)

    return jax.lax.while_loop(open_, iterate, at._replace(missing=jnp.zeros((), bool)))


def losses(
    log_p_nv: Float[Array, "N V"],
    log_p0_nv: Float[Array, "N V"],
    ids_nc: Int[Array, "N C"],
    target_nc: Float[Array, "N C"],
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Of each row: the cross-entropy CE(q, p) over the candidates, and KL(p ‖ p0)."""
    clip_n = -jnp.sum(target_nc * jnp.take_along_axis(log_p_nv, ids_nc, axis=1), axis=1)
    fluency_n = jnp.sum(jnp.exp(log_p_nv) * (log_p_nv - log_p0_nv), axis=1)
    return clip_n, fluency_n


def normalised(gradient: KVCache, how: Guidance) -> KVCache:
    """g / ‖g‖^exponent, of each row by itself: over a tensor, or over a layer's keys and values."""

    def square_n(g: Array) -> Float[Array, " N"]:
        return jnp.sum(jnp.square(g), axis=(1, 2, 3))

    def scaled(g: Array, norm_n: Float[Array, " N"]) -> Array:
        return g / ((norm_n + _TINY) ** how.norm_exponent)[:, None, None, None]

    found = []
    for k, v in gradient:
        k_n, v_n = square_n(k), square_n(v)
        if how.norm_over == "layer":
            k_n = v_n = k_n + v_n
        found.append(KV(scaled(k, jnp.sqrt(k_n)), scaled(v, jnp.sqrt(v_n))))
    return tuple(found)


def adjusted(
    logits_nv: Float[Array, "N V"],
    recent_nj: Int[AnyArray, "N J"],
    step: Int[Array, ""],
    how: Guidance,
    end_id: int,
    forbidden_v: Bool[AnyArray, " V"],
) -> Float[Array, "N V"]:
    """Logits with repetition, the end token and forbidden tokens made less or more likely.

    A positive logit is multiplied and a negative one divided, as the authors' program does.

    Args:
      recent_nj: the last four tokens of each text, −1 where it has fewer.
      step: 0 for the first word after the prompt.
    """
    v = logits_nv.shape[1]
    is_end_v = jnp.arange(v) == end_id
    recent_nv = (recent_nj[:, :, None] == jnp.arange(v)).any(axis=1)
    if how.repetition_of == "logits":
        logits_nv = _lowered(logits_nv, recent_nv, how.repetition_factor)
    raised = _lowered(logits_nv, is_end_v, 1 / how.end_factor)
    logits_nv = jnp.where(step >= how.end_from, raised, logits_nv)
    logits_nv = jnp.where(step == 0, _lowered(logits_nv, is_end_v, how.start_factor), logits_nv)
    logits_nv = _lowered(logits_nv, forbidden_v, how.forbidden_factor)
    if how.repetition_of == "probabilities":  # a quotient, before softmax, is a difference
        logits_nv = logits_nv - recent_nv * jnp.log(how.repetition_factor)
    return logits_nv


def _lowered(logits_nv: Array, where: AnyArray, factor: float) -> Array:
    changed = jnp.where(logits_nv > 0, logits_nv / factor, logits_nv * factor)
    return jnp.where(where, changed, logits_nv)


def fused(
    log_p_bkv: Float[Array, "B K V"], log_p0_bkv: Float[Array, "B K V"], how: Guidance
) -> Float[Array, "B K V"]:
    """log of p^f · p0^(1 − f), normalised: over each text, or over all beams of an image together.

    The latter is what the authors' program does (`probs / probs.sum()`); it shifts running beams
    against finished ones.
    """
    mixed = how.fusion * log_p_bkv + (1 - how.fusion) * log_p0_bkv
    axes: tuple[int, ...] = (1, 2) if how.joint else (2,)
    return mixed - jax.nn.logsumexp(mixed, axis=axes, keepdims=True)
