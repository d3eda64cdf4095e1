"""Checkpoints: what is kept, what comes back, on which mesh, and what a misfit says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from har_jax.checkpoint import Checkpoints, abstract, resolve_step
from har_jax.errors import UserError
from har_jax.models.functional import split
from har_jax.sharding import make_mesh
from har_jax.training.step import optimizer_shardings
from tests.helpers import small_captioner


def state_on(mesh):
    structure, params = split(small_captioner())
    shardings = structure.shardings(mesh)
    optimizer = optax.adamw(1e-3)
    params = jax.device_put(params, shardings)
    opt_shardings = optimizer_shardings(optimizer, params, shardings, mesh)
    opt = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)
    opt = jax.tree.map(lambda x: x + 1, opt)
    return params, opt, shardings, opt_shardings


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_restores_onto_another_mesh(tmp_path, shape):
    params, opt, *_ = state_on(make_mesh(4, 2, 1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, params, opt, {"data": {"next": 3}, "seed": 0})
    checkpoints.close()

    _, _, shardings, opt_shardings = state_on(make_mesh(*shape))
    checkpoints = Checkpoints(tmp_path, read_only=True)
    got_params, got_opt, progress = checkpoints.restore(
        resolve_step(tmp_path, "latest"), abstract(params, shardings), abstract(opt, opt_shardings)
    )
    assert progress == {"data": {"next": 3}, "seed": 0}
    for name, value in params.items():
        np.testing.assert_array_equal(value, got_params[name])
        assert got_params[name].sharding == shardings[name]
    for a, b in zip(jax.tree.leaves(opt), jax.tree.leaves(got_opt), strict=True):
        np.testing.assert_array_equal(a, b)
    again = checkpoints.restore_params(7, abstract(params, shardings))
    np.testing.assert_array_equal(again["lm.norm.scale"], params["lm.norm.scale"])


def test_keeps_the_best_and_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, cider in [(1, 0.5), (2, 0.9), (3, 0.7), (4, None), (5, 0.8), (6, None)]:
        params = {"a": jnp.full(3, step)}
        checkpoints.save(
            step, params, {"m": jnp.zeros(2)}, {}, None if cider is None else {"CIDEr": cider}
        )
    checkpoints.wait()
    assert checkpoints.steps() == [2, 6]
    assert (resolve_step(tmp_path, "best"), resolve_step(tmp_path, "latest")) == (2, 6)
    assert resolve_step(tmp_path, "6") == 6 and checkpoints.latest() == 6
    with pytest.raises(UserError, match="no checkpoint of step 3; it has 2, 6"):
        resolve_step(tmp_path, 3)
    with pytest.raises(UserError, match=r"did you mean 'latest'\?"):
        resolve_step(tmp_path, "latset")


def test_a_misfit_names_every_difference(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(1)}, {"m": jnp.zeros(2)}, {})
    checkpoints.wait()
    wanted = {"a": jax.ShapeDtypeStruct((2, 4), jnp.float32), "c": jax.ShapeDtypeStruct((), "f4")}
    with pytest.raises(UserError) as caught:
        checkpoints.restore_params(1, wanted)
    message = str(caught.value)
    assert "a is (2, 3) in the checkpoint and (2, 4) in the model" in message
    assert "b is only in the checkpoint" in message and "c is not in the checkpoint" in message


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        Checkpoints(tmp_path)
        resolve_step(tmp_path, "best")
