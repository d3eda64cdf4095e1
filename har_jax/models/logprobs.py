"""Log-probabilities of tokens, in one place for objectives, decoding and scoring.

`score_tokens` goes from hidden states to what is wanted of the logits, in blocks of places, so that
neither the forward nor the backward pass ever holds logits of all places at once: at 64 images of 5
captions of 40 tokens and 32,000 words they would take 1.6 GB, several times over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from har_jax.sharding import batch_parts, constrain, vocabulary_parts
from har_jax.types import Array, Bool, Float, Int

MAX_LOGITS_BYTES = 64 << 20
"""Of the logits that a device holds at a time. A smaller batch's are made in one block, and kept
for the backward pass, for there is nothing to be saved."""


class TokenScores(NamedTuple):
    """What a policy thinks of known tokens."""

    logp: Float[Array, "B R T"]  # log P of each token, in nats
    entropy: Float[Array, "B R T"]  # of the distribution that it stands in; not differentiated
    likeliest: Bool[Array, "B R T"]  # whether no token had a larger logit


def token_logprobs(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """log softmax(logits)[token], in nats: the token's logit less the logsumexp of all."""
    return _chosen(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _chosen(logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows"]) -> Array:
    """The logits of the tokens. A sum over a comparison, and no gather: where a mesh splits the
    vocabulary, each part adds its own, and the gradient scatters nothing."""
    at = jnp.arange(logits.shape[-1]) == tokens[..., None]
    return jnp.sum(jnp.where(at, logits, 0.0), axis=-1)


def score_tokens(
    logits_of: Callable[[Array], Array],
    hidden: Float[Array, "B R T D"],
    tokens: Int[Array, "B R T"],
    temperature: float = 1.0,
    max_bytes: int = MAX_LOGITS_BYTES,
) -> TokenScores:
    """Scores of tokens under softmax(logits_of(hidden) / temperature).

    Args:
      logits_of: from hidden states to float32 logits, place by place; it may close over parameters
        that learn.
      max_bytes: of logits on a device at a time. Where more are needed, they are made in blocks of
        places, and made again in the backward pass.
    """
    t = hidden.shape[2]

    def block(pair: tuple[Array, Array]) -> TokenScores:
        hidden, tokens = pair
        logits = constrain(logits_of(hidden), "batch", None, None, "vocab") / temperature
        top, fixed = jnp.max(logits, axis=-1), jax.lax.stop_gradient(logits)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = _chosen(logits, tokens)
        # Entropy: the expected logit, taken from the logarithm of the sum.
        p = jnp.exp(fixed - jax.lax.stop_gradient(total)[..., None])
        entropy = jax.lax.stop_gradient(total) - jnp.sum(p * fixed, axis=-1)
        return TokenScores(chosen - total, entropy, jax.lax.stop_gradient(chosen) >= top)

    n_blocks = _blocks(logits_of, hidden, max_bytes)
    if n_blocks == 1:
        return block((hidden, tokens))
    # Places are split, images are not: those are spread over the devices.
    size = -(-t // n_blocks)
    room = n_blocks * size - t

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, room)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(*x.shape[:2], n_blocks, size, *x.shape[3:]), 2, 0)

    again = jax.checkpoint(block, prevent_cse=False)  # a scan's body is compiled alone
    scores = jax.lax.map(again, (blocks(hidden), blocks(tokens)))

    def whole(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], n_blocks * size)[:, :, :t]

    return TokenScores(*map(whole, scores))


def _blocks(logits_of: Callable, hidden: Float[Array, "B R T D"], max_bytes: int) -> int:
    """Into how many blocks of places the logits are split: at most T."""
    shape = jax.eval_shape(logits_of, hidden)
    parts = batch_parts(shape.shape[0]) * vocabulary_parts(shape.shape[-1])
    needed = math.prod(shape.shape) * 4 / parts
    return min(hidden.shape[2], math.ceil(needed / max_bytes))


def length_mask(lengths: Int[Array, "B R"], max_tokens: int) -> Float[Array, "B R T"]:
    """1 for the tokens of a caption, its EOS included, and 0 after; all 0 for a padded row."""
    return (jnp.arange(max_tokens) < lengths[..., None]).astype(jnp.float32)
