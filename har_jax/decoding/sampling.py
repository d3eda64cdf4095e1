"""Choosing the next token of each row: argmax, or a draw by inverse distribution function.

A draw needs one uniform number per row. `jax.random.categorical` needs one per vocabulary entry,
which on a CPU costs more than the decoder's matrix products (docs/performance.md, "Sampling").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from har_jax.decoding.plan import DecodePlan
from har_jax.models.logprobs import token_logprobs
from har_jax.sharding import constrain, vocabulary_parts
from har_jax.types import Array, Float, Int, Key

_BLOCK = 128


def truncate(logits: Float[Array, "*rows V"], top_k: int, top_p: float) -> Float[Array, "*rows V"]:
    """Tokens outside the k likeliest, or outside the smallest set of mass ≥ p, get -inf.

    The likeliest token always stays (Holtzman et al. 2020, as `transformers` does it).
    """
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1)
        before = jnp.roll(before, 1, axis=-1).at[..., 0].set(0.0)
        threshold = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def draw(logits: Float[Array, "*rows V"], uniform: Float[Array, "*rows"]) -> Int[Array, "*rows"]:
    """One token per row with probability softmax(logits), by inversion of u ∈ [0,1).

    In two levels: the block of the vocabulary in which the cumulated mass passes u, then the token
    in that block. A token of probability 0 is never drawn. Where a mesh splits the vocabulary, the
    sums of blocks and one block a row travel between devices, and no logits.
    """
    *rows, v = logits.shape
    n_parts = vocabulary_parts(v)
    size = _BLOCK if n_parts == 1 else _block_size(v // n_parts)
    n_blocks = -(-v // size)
    # 1. Weights in blocks of the vocabulary; what is padded has none.
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0)] * len(rows) + [(0, n_blocks * size - v)])
    weights = weights.reshape(*rows, n_blocks, size)
    blocks = jnp.cumsum(constrain(jnp.sum(weights, axis=-1), "batch"), axis=-1)
    # 2. The block in which the target lies. Rounding must not push the target to the total itself:
    #    nothing lies beyond it.
    target = jnp.minimum(uniform * blocks[..., -1], jnp.nextafter(blocks[..., -1], -1.0))
    block = jnp.argmax(blocks > target[..., None], axis=-1)
    before = jnp.where(
        block > 0,
        jnp.take_along_axis(blocks, jnp.maximum(block - 1, 0)[..., None], axis=-1)[..., 0],
        0.0,
    )
    # 3. The token in that block. The two levels round differently: where no token of the block
    #    passes, its last possible one.
    if n_parts == 1:
        inside = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    else:  # a gather would bring all weights together first
        at = jnp.arange(n_blocks)[:, None] == block[..., None, None]
        inside = constrain(jnp.sum(jnp.where(at, weights, 0.0), axis=-2), "batch")
    cumulated = jnp.cumsum(inside, axis=-1)
    passed = (before[..., None] + cumulated > target[..., None]) & (inside > 0)
    last_possible = size - 1 - jnp.argmax(inside[..., ::-1] > 0, axis=-1)
    within = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last_possible)
    return (block * size + within).astype(jnp.int32)


def _block_size(part: int) -> int:
    """The largest up to `_BLOCK` that divides a device's part: no block lies on two devices."""
    return max(n for n in range(1, _BLOCK + 1) if part % n == 0)


def likeliest(logits: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """The first token with the largest logit: argmax, which where a mesh splits the vocabulary
    compares one number a device."""
    if vocabulary_parts(logits.shape[-1]) == 1:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    v = logits.shape[-1]
    best = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(best, jnp.arange(v, dtype=jnp.int32), v), axis=-1)


def choose(
    logits: Float[Array, "B R V"], plan: DecodePlan, key: Key[Array, ""]
) -> tuple[Int[Array, "B R"], Float[Array, "B R"]]:
    """The next token of each row and its log-probability under the policy of that row.

    The greedy row's log-probability is that of the untempered model; a sampled row's that of the
    tempered, truncated distribution that it was drawn from.
    """
    b, r, _ = logits.shape
    tokens, logps = [], []
    if plan.greedy:
        greedy = logits[:, :1]
        tokens.append(likeliest(greedy))
        logps.append(token_logprobs(greedy, tokens[-1]))
    if plan.samples:
        policy = logits[:, r - plan.samples :] / plan.temperature
        if plan.truncates:  # sorting takes the whole vocabulary
            policy = truncate(constrain(policy, "batch"), plan.top_k, plan.top_p)
        tokens.append(draw(policy, jax.random.uniform(key, (b, plan.samples))))
        logps.append(token_logprobs(policy, tokens[-1]))
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(logps, axis=1)
