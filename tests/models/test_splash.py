"""Splash attention, interpreted, against the definition in float64; and where it may run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.models.splash import splash_attention
from har_jax.sharding import make_mesh

SHAPES = [  # T, queries' heads, keys' heads, H, causal, window
    (10, 2, 2, 8, True, None),
    (128, 4, 2, 16, True, None),
    (257, 4, 1, 64, False, None),
    (300, 2, 2, 64, True, 40),
    (300, 2, 1, 128, True, 1000),
    (500, 4, 4, 128, True, 500),
]


def _heads(t, n, k, h, b=2):
    keys = jax.random.split(jax.random.key(t), 4)
    shapes = ((b, t, n, h), (b, t, k, h), (b, t, k, h), (b, t, n, h))
    return [jax.random.normal(key, s, jnp.float32) for key, s in zip(keys, shapes, strict=True)]


def _plain(q, k, v, *, causal, window):
    """By the definition, head by head."""
    b, t, n, h = q.shape
    group = n // k.shape[2]
    at = np.arange(t)
    distance = at[:, None] - at[None, :]
    seen = np.ones((t, t), bool)
    if causal:
        seen = (distance >= 0) & (distance < (window or t))
    out = np.empty((b, t, n, h))
    for i in range(n):
        scores = np.einsum("bth,bsh->bts", q[:, :, i], k[:, :, i // group]) / np.sqrt(h)
        weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        weights /= weights.sum(-1, keepdims=True)
        out[:, :, i] = np.einsum("bts,bsh->bth", weights, v[:, :, i // group])
    return out


@pytest.mark.parametrize(("t", "n", "k", "h", "causal", "window"), SHAPES)
def test_equals_the_definition(t, n, k, h, causal, window):
    q, keys, values, _ = _heads(t, n, k, h)
    how = {"causal": causal, "window": window}
    with jax.default_matmul_precision("highest"):
        found = splash_attention(q, keys, values, interpret=True, **how)
    exact = _plain(*(np.asarray(x, np.float64) for x in (q, keys, values)), **how)
    np.testing.assert_allclose(found, exact, atol=2e-6)


@pytest.mark.parametrize(("t", "n", "k", "h", "causal", "window"), SHAPES[1:4])
def test_gradients_are_those_of_plain_products(t, n, k, h, causal, window):
    q, keys, values, weight = _heads(t, n, k, h)
    near = None if window is None else (window - 1, 0)

    def splash(*given):
        out = splash_attention(*given, causal=causal, window=window, interpret=True)
        return jnp.sum(out * weight)

    def plain(*given):
        out = jax.nn.dot_product_attention(*given, is_causal=causal, local_window_size=near)
        return jnp.sum(out * weight)

    for found, exact in zip(
        jax.grad(splash, (0, 1, 2))(q, keys, values),
        jax.grad(plain, (0, 1, 2))(q, keys, values),
        strict=True,
    ):
        np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize("k", [4, 1])
def test_on_a_mesh_each_device_has_its_images_and_heads(k):
    q, keys, values, _ = _heads(130, 4, k, 16, b=4)
    attend = functools.partial(splash_attention, causal=True, interpret=True)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        found = jax.jit(attend)(q, keys, values)
    shapes = {shard.data.shape for shard in found.addressable_shards}
    assert shapes == {(1, 130, 2 if k == 4 else 4, 16)}, "as the keys' heads can be divided"
    np.testing.assert_allclose(found, attend(q, keys, values), atol=1e-6)
