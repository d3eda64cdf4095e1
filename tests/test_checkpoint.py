"""Checkpoints: what is kept, what comes back, on which mesh, and what a misfit says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from har_jax.checkpoint import Checkpoints, abstract, finished_steps, resolve_step
from har_jax.errors import UserError
from har_jax.models.functional import split
from har_jax.sharding import make_mesh
from har_jax.training.step import optimizer_shardings
from tests.helpers import long, small_captioner


def state_on(mesh):
    structure, params = split(small_captioner())
    shardings = structure.shardings(mesh)
    optimizer = optax.adamw(1e-3)
    params = jax.device_put(params, shardings)
    opt_shardings = optimizer_shardings(optimizer, params, shardings, mesh)
    opt = jax.jit(optimizer.init, out_shardings=opt_shardings)(params)
    opt = jax.tree.map(lambda x: x + 1, opt)
    return params, opt, shardings, opt_shardings


@pytest.mark.parametrize("shape", [(2, 2, 2), *long([(1, 8, 1), (8, 1, 1)])])
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


def two_steps(run):
    """Step 1 is the best one, step 2 the latest."""
    checkpoints = Checkpoints(run)
    for step, cider in ((1, 0.9), (2, 0.5)):
        params = {"a": jnp.arange(64.0) + step}
        checkpoints.save(step, params, {"m": params["a"] * 2}, {"n": step}, {"CIDEr": cider})
    checkpoints.close()


WANTED = (
    {"a": jax.ShapeDtypeStruct((64,), jnp.float32)},
    {"m": jax.ShapeDtypeStruct((64,), jnp.float32)},
)


def damage_to(run, step, item):
    """Flips a bit in the largest file of an item, or cuts off the JSON of `metrics`."""
    files = [p for p in (run / "checkpoints" / str(step) / item).rglob("*") if p.is_file()]
    files = [p for p in files if p.name != "commit_success.txt"]
    file = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if item in ("params", "optimizer") else data[:9])


@pytest.mark.parametrize("item", ["params", "optimizer", "progress", "metrics"])
def test_a_damaged_step_is_in_nobodys_way(tmp_path, caplog, item):
    two_steps(tmp_path)
    damage_to(tmp_path, 2, item)
    # 1. Who wants the parameters alone is not held up by anything else.
    whole = item != "params"
    assert resolve_step(tmp_path, "best") == 1
    assert resolve_step(tmp_path, "latest") == (2 if whole else 1)
    if whole:
        reader = Checkpoints(tmp_path, read_only=True)
        assert reader.restore_params(2, WANTED[0])["a"][0] == 2
        assert resolve_step(tmp_path, 2) == 2
    else:
        with pytest.raises(UserError, match=r"checkpoint 2 of .* is damaged .params/"):
            resolve_step(tmp_path, 2)
    # 2. A run goes on from the newest whole step, says so, and keeps what it set aside.
    caplog.clear()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == 1 and checkpoints.best() == 1
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == 1 and "checkpoint 2 is damaged (" in told[0] and "from step 1" in told[0]
    params, optimizer, progress = checkpoints.restore(1, *WANTED)
    assert params["a"][0] == 1 and optimizer["m"][0] == 2 and progress == {"n": 1}
    assert (tmp_path / "checkpoints" / "damaged-2").is_dir()
    # 3. The step is done, and saved, again.
    checkpoints.save(2, {"a": params["a"] + 1}, optimizer, {"n": 2}, {"CIDEr": 0.5})
    checkpoints.close()
    assert resolve_step(tmp_path, "latest") == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("item_handlers", True),
        ("metrics", 3),
        ("performance_metrics", []),
        ("init_timestamp_nsecs", "a"),
        ("commit_timestamp_nsecs", 1.5),
        ("custom_metadata", [1]),
        ("performance_metrics", {"speed": 1.5}),
    ],
)
def test_what_orbax_writes_of_a_step_is_not_so(tmp_path, key, value):
    """Orbax reads it of all steps before any: the step is set aside, or it is told in a line."""
    two_steps(tmp_path)
    file = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    if value == {"speed": 1.5}:
        with pytest.raises(UserError, match=r"checkpoints is damaged .*'speed'"):
            Checkpoints(tmp_path)
        return
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == 1
    checkpoints.close()


def test_figures_that_cannot_be_read_are_given_up_last(tmp_path, caplog):
    two_steps(tmp_path)
    for step in (1, 2):
        damage_to(tmp_path, step, "metrics")
    assert resolve_step(tmp_path, "best") == 2
    assert sum("cannot be the best" in r.getMessage() for r in caplog.records) == 2
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == 2 and checkpoints.best() is None
    checkpoints.close()


def test_no_step_is_whole(tmp_path):
    two_steps(tmp_path)
    for step in (1, 2):
        damage_to(tmp_path, step, "params")
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole"):
        resolve_step(tmp_path, "best")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .2: params/"):
        Checkpoints(tmp_path)


def test_what_is_known_later_is_added_to_a_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    params = {"a": jnp.zeros(64)}
    for step, cider in ((1, 0.9), (2, None), (3, 0.1)):
        checkpoints.save(step, params, {"m": params["a"]}, {"validate": True})
        checkpoints.complete(step, {"n": step}, None if cider is None else {"CIDEr": cider})
    checkpoints.close()
    assert finished_steps(tmp_path) == {1: 0.9, 3: 0.1}
    assert Checkpoints(tmp_path, read_only=True).restore(3, *WANTED)[2] == {"n": 3}
