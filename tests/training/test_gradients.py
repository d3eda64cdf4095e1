"""Microbatches: the loss, figures and gradients of the whole batch, whatever the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.config import Config, ScstConfig, check, check_devices
from har_jax.errors import UserError
from har_jax.figures import Loss, mean
from har_jax.models.functional import split
from har_jax.objectives.likelihood import make_mle_loss
from har_jax.objectives.self_critical import make_scst_loss
from har_jax.sharding import batch_sharding, make_mesh
from har_jax.training.gradients import make_gradient
from tests.helpers import images, long, small_captioner

B, R, T = 8, 3, 6


def batch():
    tokens = jax.random.randint(jax.random.key(7), (B, R, T), 3, 14)
    lengths = jnp.asarray(np.random.default_rng(0).integers(0, T + 1, (B, R)))  # some are padding
    ids = jnp.arange(B, dtype=jnp.int32)
    return {"image": images(B), "image_id": ids, "tokens": tokens, "lengths": lengths}


def reward(image_ids, tokens, lengths, params=None, /):
    values = jnp.sin(tokens.sum(-1) + image_ids[:, None]) + lengths
    return values, {"a": values * 2, "b": -values}


def losses():
    structure, params = split(small_captioner(scale=2.0))
    settings = ScstConfig(samples=3, baseline="both")
    return params, {
        "mle": make_mle_loss(structure),
        "scst": make_scst_loss(structure, settings, T, reward),
    }


@pytest.mark.parametrize(
    "case",
    [("scst", 2), ("mle", 4), *long([("mle", 2), ("mle", 8), ("scst", 4), ("scst", 8)])],
    ids=str,
)
def test_parts_add_up_to_the_whole(case):
    stage, n = case
    params, by_stage = losses()
    trained = {name: x for name, x in params.items() if not name.startswith("vision.")}
    frozen = {name: x for name, x in params.items() if name not in trained}
    arguments = (trained, frozen, batch(), jax.random.key(3))
    whole, expected = jax.jit(make_gradient(by_stage[stage]))(*arguments)
    parts, got = jax.jit(make_gradient(by_stage[stage], n))(*arguments)
    for name, gradient in expected.items():
        scale = np.abs(gradient).max() + 1e-3
        np.testing.assert_allclose(got[name] / scale, gradient / scale, atol=1e-5, err_msg=name)
    assert whole.figures.keys() == parts.figures.keys()
    for name, figure in whole.figures.items():
        np.testing.assert_allclose(parts.figures[name].value, figure.value, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(parts.total / parts.weight, whole.total / whole.weight, rtol=1e-5)
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(parts.arrays[name], array, atol=1e-5, err_msg=name)


def test_on_a_mesh():
    """Each device keeps its images: two on each, in two parts."""
    params, by_stage = losses()
    arguments = (params, {}, batch(), jax.random.key(3))
    _, expected = jax.jit(make_gradient(by_stage["mle"]))(*arguments)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch(), batch_sharding(mesh))
        step = jax.jit(make_gradient(by_stage["mle"], 2))
        _, got = step(params, {}, placed, jax.random.key(3))
    for name, gradient in expected.items():
        np.testing.assert_allclose(got[name], gradient, atol=1e-5, err_msg=name)


def test_memory_is_that_of_a_part():
    params, by_stage = losses()
    wide = {name: jnp.concatenate([x] * 8) for name, x in batch().items()}

    def temporaries(n):
        step = jax.jit(make_gradient(by_stage["mle"], n))
        compiled = step.lower(params, {}, wide, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.4 * temporaries(1)


def test_a_loss_that_knows_of_no_parts():
    """It is given images of the batch itself."""

    def loss(params, batch, key):
        errors = (batch["x"] * params["w"] - 1) ** 2
        return Loss(jnp.sum(errors), jnp.float32(errors.size), {"e": mean(errors)})

    arguments = ({"w": jnp.float32(0.3)}, {}, {"x": jnp.arange(6.0)}, jax.random.key(0))
    (_, a), (_, b) = (make_gradient(loss, n)(*arguments) for n in (1, 3))
    np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


def test_parts_that_do_not_divide():
    with pytest.raises(UserError, match=r"microbatches=3 does not divide config.batch_size=32"):
        check(Config(batch_size=32, microbatches=3))
    with pytest.raises(UserError, match=r"over 8 devices; use a multiple of 64, or config.micro"):
        check_devices(Config(batch_size=32, microbatches=8), 8)
