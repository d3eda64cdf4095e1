"""Log-probabilities of tokens from logits, in one place for objectives, decoding and scoring."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from har_jax.types import Array, Float, Int


def token_logprobs(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """log softmax(logits)[token], in nats: the token's logit less the logsumexp of all."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def length_mask(lengths: Int[Array, "B R"], max_tokens: int) -> Float[Array, "B R T"]:
    """1 for the tokens of a caption, its EOS included, and 0 after; all 0 for a padded row."""
    return (jnp.arange(max_tokens) < lengths[..., None]).astype(jnp.float32)
