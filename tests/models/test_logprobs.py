"""Scores of tokens in blocks of places: the same numbers and gradients, and no logits of all."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_jax.models.logprobs import score_tokens
from har_jax.sharding import batch_sharding, make_mesh

B, R, T, D, V = 2, 3, 7, 8, 40


def drawn(seed=0, t=T):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (B, R, t, D))
    kernel = jax.random.normal(keys[1], (D, V))
    return hidden, kernel, jax.random.randint(keys[2], (B, R, t), 0, V)


def scores(hidden, kernel, tokens, temperature=1.0, max_bytes=1 << 30):
    return score_tokens(lambda h: h @ kernel, hidden, tokens, temperature, max_bytes)


def test_against_float64():
    hidden, kernel, tokens = drawn()
    got = scores(hidden, kernel, tokens, 0.7)
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) / 0.7
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = np.asarray(tokens)[..., None]
    np.testing.assert_allclose(got.logp, np.take_along_axis(logp, at, -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(got.entropy, -(np.exp(logp) * logp).sum(-1), atol=1e-5)
    np.testing.assert_array_equal(got.likeliest, logits.argmax(-1) == np.asarray(tokens))


@pytest.mark.parametrize(
    ("seed", "t", "n_blocks", "temperature"), [(0, 7, 3, 0.5), (1, 8, 4, 1.0), (2, 1, 9, 1.0)]
)
def test_blocks_change_nothing(seed, t, n_blocks, temperature):
    """Blocks that do not divide the places, blocks that do, and more of them than places."""
    same_in_blocks(seed, t, n_blocks, temperature)


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 0.5]))
def test_blocks_change_nothing_whatever_their_number(seed, t, n_blocks, temperature):
    same_in_blocks(seed, t, n_blocks, temperature)


def same_in_blocks(seed, t, n_blocks, temperature):
    hidden, kernel, tokens = drawn(seed, t)
    weights = jax.random.normal(jax.random.key(seed + 1), (B, R, t))
    limit = math.ceil(B * R * t * V * 4 / n_blocks)

    def loss(hidden, kernel, max_bytes):
        found = scores(hidden, kernel, tokens, temperature, max_bytes)
        return jnp.sum(found.logp * weights), found

    one, some = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)(
            hidden, kernel, max_bytes
        )
        for max_bytes in (1 << 30, limit)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(some), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), atol=2e-5)


def test_temporaries_fall_by_the_logits():
    """Forward and backward: of 16 blocks, nothing as large as all logits is left."""
    t, v = 64, 4096
    hidden, kernel = jnp.zeros((B, R, t, D)), jnp.zeros((D, v))
    tokens = jnp.zeros((B, R, t), jnp.int32)
    logits = B * R * t * v * 4

    def temporaries(max_bytes):
        def loss(hidden, kernel):
            return jnp.sum(scores(hidden, kernel, tokens, 1.0, max_bytes).logp)

        step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile()
        return step.memory_analysis().temp_size_in_bytes

    whole, blocks = temporaries(1 << 30), temporaries(logits // 16)
    assert whole >= logits
    assert whole - blocks > 0.8 * logits


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_on_a_mesh_that_splits_the_vocabulary(shape):
    hidden, kernel, tokens = drawn()
    hidden, tokens = (jnp.concatenate([x] * 4) for x in (hidden, tokens))
    expected = scores(hidden, kernel, tokens)
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put((hidden, tokens), batch_sharding(mesh))
        limit = math.ceil(8 * R * T * V * 4 / 8 / 3)  # three blocks
        jitted = jax.jit(lambda h, k, t: scores(h, k, t, 1.0, limit))
        got = jitted(placed[0], kernel, placed[1])
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), atol=1e-5)
