"""Schedules and update rules against optax's own pieces and plain arithmetic."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from har_jax.config import OptimConfig
from har_jax.training.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule(schedule):
    config = OptimConfig(lr=0.1, schedule=schedule, warmup_steps=4, final_lr_factor=0.5)
    values = [float(make_schedule(config, 20)(t)) for t in range(21)]
    np.testing.assert_allclose(values[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    np.testing.assert_allclose(values[-1], 0.1 if schedule == "constant" else 0.05, rtol=1e-6)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values[4:]))


def scaled(updates, rate):
    """As a step does it: an optimizer's updates are those of a learning rate of 1."""
    return {name: rate * update for name, update in updates.items()}


def test_groups_clipping_and_decay():
    params = {"projector.w": jnp.ones((2, 2)), "lm.w": jnp.ones((2, 2)), "lm.norm": jnp.ones(2)}
    grads = {k: jnp.full_like(v, 3.0) for k, v in params.items()}
    config = OptimConfig(
        name="sgd",
        lr=0.1,
        schedule="constant",
        projector_lr_factor=10.0,
        clip_norm=1.0,
        weight_decay=0.5,
    )
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    updates = scaled(updates, config.lr)
    clipped = 3.0 / float(optax.global_norm(grads))
    np.testing.assert_allclose(updates["lm.norm"], -0.1 * clipped, rtol=1e-5)
    np.testing.assert_allclose(updates["lm.w"], -0.1 * (clipped + 0.5), rtol=1e-5)
    np.testing.assert_allclose(updates["projector.w"], -1.0 * (clipped + 0.5), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "sgd"])
def test_every_rule_descends(name):
    config = OptimConfig(name=name, lr=0.05, schedule="constant", clip_norm=0)
    optimizer = make_optimizer(config, {"lm.w": ("embed", "mlp")})
    params = {"lm.w": jnp.ones((4, 4))}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update({"lm.w": 2 * params["lm.w"]}, state, params)
        return optax.apply_updates(params, scaled(updates, config.lr)), state

    for _ in range(300):
        params, state = step(params, state)
    assert float(jnp.abs(params["lm.w"]).max()) < 0.5


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "sgd"])
def test_weight_decay_reaches_every_matrix_and_no_vector(name):
    """Embeddings too, which Muon leaves to Adam."""
    axes = {
        "lm.embed": ("vocab", "embed"),
        "lm.layers.up": ("layers", "embed", "mlp"),
        "lm.layers.norm": ("layers", "embed"),
        "lm.norm": ("embed",),
    }
    shapes = {"lm.embed": (7, 4), "lm.layers.up": (2, 4, 5), "lm.layers.norm": (2, 4)}
    params = {n: jnp.ones(shape) for n, shape in {**shapes, "lm.norm": (4,)}.items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(OptimConfig(name=name, weight_decay=0.5, clip_norm=0), axes)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for key, update in updates.items():
        np.testing.assert_allclose(update, 0 if "norm" in key else -0.5, err_msg=key)


def test_with_muon_all_but_hidden_kernels_learn_as_with_adamw():
    """Biases of heads are vectors, however many axes they have; embeddings decay, and neither norms
    nor biases do."""
    axes = {
        "lm.q.kernel": ("embed", "heads", "head_dim"),
        "lm.q.bias": ("heads", "head_dim"),
        "lm.layers.q.bias": ("layers", "kv_heads", "head_dim"),
        "lm.qkv.bias": (None, "heads", "head_dim"),
        "lm.embedding": ("vocab", "embed"),
        "lm.norm.scale": ("embed",),
        "lm.lm_head.kernel": ("embed", "vocab"),
    }
    sizes = {"embed": 6, "heads": 2, "kv_heads": 2, "head_dim": 3, "vocab": 8, "layers": 2, None: 3}
    keys = jax.random.split(jax.random.key(0), len(axes))
    params = {
        name: jax.random.normal(key, tuple(sizes[a] for a in own))
        for key, (name, own) in zip(keys, axes.items(), strict=True)
    }
    moves, first = {}, {}
    for name in ("muon", "adamw"):
        config = OptimConfig(name=name, weight_decay=0.1, clip_norm=0)
        optimizer = make_optimizer(config, axes)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        first[name], state = update(params, state, params)
        moves[name], _ = update({k: x[::-1] for k, x in params.items()}, state, params)
    for key in axes:
        same = np.allclose(moves["muon"][key], moves["adamw"][key], rtol=1e-5)
        assert same == (key != "lm.q.kernel"), key
    signs = {key: -jnp.sign(x) for key, x in params.items()}  # Adam's first step, but for the decay
    for key in axes:
        if key != "lm.q.kernel":
            decays = key in ("lm.embedding", "lm.lm_head.kernel")
            wanted = signs[key] - 0.1 * params[key] * decays
            np.testing.assert_allclose(first["muon"][key], wanted, rtol=1e-4, atol=1e-5)
