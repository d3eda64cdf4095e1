"""The loop under guards: it stops, or goes back to its best checkpoint, and a run that was cut
anywhere on that way ends as an unbroken one."""

import concurrent.futures
import contextlib
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from har_jax.checkpoint import Checkpoints, finished_steps
from har_jax.config import Config, EvalConfig, GuardsConfig
from har_jax.errors import UserError
from har_jax.figures import Loss, mean
from har_jax.sharding import MESH_AXES
from har_jax.training.guards import Guards
from har_jax.training.loggers import RunLog
from har_jax.training.loop import Hooks, fit
from har_jax.training.profile import Profile
from har_jax.training.step import make_train_step

STEPS = 24
SIZE = 37  # of the parameter: no other array is as large
OFF = dict.fromkeys(("bad_end", "repetition", "length", "entropy", "reward", "kl", "clip"), "off")


class Numbers:
    """Batches whose state is a number: 1.0, 2.0, ..."""

    def __init__(self):
        self.n = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        return {"x": np.full((2,), self.n, np.float32)}

    def get_state(self):
        return {"n": self.n}

    def set_state(self, state):
        self.n = state["n"]


@pytest.fixture(scope="module")
def mesh():
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=auto, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def step(mesh):
    def loss_fn(params, batch, key):
        noise = jax.random.normal(key)  # of the step's number, as in SCST's samples
        total = jnp.sum(params["w"] * (jnp.mean(batch["x"]) + noise))
        return Loss(total, jnp.float32(1), {"entropy": mean(params["w"][0])})

    shape = {"w": jax.ShapeDtypeStruct((SIZE,), jnp.float32)}
    sharding = {"w": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())}
    return make_train_step(loss_fn, optax.adam(1.0), schedule, shape, sharding, mesh, 0)


def schedule(n):
    """Falls, so that a roll-back that took it back would be seen."""
    return 0.05 * (1 - n / (2 * STEPS))


def start():
    return {"w": jnp.full((SIZE,), 1.0)}


def run(
    directory, mesh, step, *, stop_after=None, broken=(9, 10, 18, 19), initial=start, profile=None,
    validate=None, **changes,
):  # fmt: skip
    """Trains; `bad_end_rate` is high at the steps in `broken`, and validation likes early steps."""
    settings = {"window": 1, "patience": 2, **OFF, "bad_end": "rollback", **changes}
    config = Config(
        steps=STEPS,
        batch_size=2,
        log_every=1,
        checkpoint_every=4,
        eval=EvalConfig(every=4),
        guards=GuardsConfig(**settings),
    )
    notes = []
    checkpoints = Checkpoints(directory)

    def look(params, n):
        checkpoints.wait()  # what is being saved is held as long
        return (validate or like_early)(params, n)

    hooks = Hooks(
        validate=look,
        summarise=lambda arrays, n: {"bad_end_rate": 0.9 if n in broken else 0.0},
        note=lambda rollbacks: notes.append(list(rollbacks)),
    )
    with contextlib.closing(RunLog(directory)) as logger:
        result = fit(
            config, step, initial, {}, Numbers(), checkpoints, logger, mesh, hooks,
            guards=Guards(config.guards), stop_after=stop_after, profile=profile,
        )  # fmt: skip
    checkpoints.close()
    return result, notes


def rows(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "train/steps_per_second", "train/images_per_second", "train/data_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


def like_early(params, n):
    return {"CIDEr": 1 / (1 + abs(n - 5)), "loss": float(params["w"][0])}


@pytest.fixture(scope="module")
def unbroken(mesh, step, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, *run(directory, mesh, step)


def test_rolling_back_restores_the_best_checkpoint_and_lowers_the_rate(unbroken):
    directory, result, notes = unbroken
    assert result.finished and result.stopped_by is None
    assert [(r["step"], r["to"]) for r in notes[-1]] == [(10, 4), (19, 4)]
    assert float(result.state.lr_scale) == 0.25
    by_step = {row["step"]: row for row in rows(directory) if "train/loss" in row}
    assert by_step[11]["train/lr_scale"] == 0.5 and "train/lr_scale" not in by_step[10]

    def weight(n):  # before step n
        return by_step[n]["train/entropy"]

    # Step 11 begins where step 5 began; its step is half as long, up to Adam's memory being equal.
    assert weight(11) == weight(5) == weight(20)
    shorter = 0.5 * schedule(10) / schedule(4)
    taken, before = (abs(weight(n + 1) - weight(n)) for n in (11, 5))
    assert taken == pytest.approx(shorter * before, rel=0.2)
    events = [row["event"] for row in rows(directory) if "event" in row]
    assert [e.get("guard", "rollback") for e in events] == ["bad_end", "rollback"] * 2


def test_the_schedule_goes_on_after_a_rollback(unbroken):
    """It follows the steps of the run, and is not taken back with the parameters."""
    for row in rows(unbroken[0]):
        if "train/loss" in row:
            expected = row.get("train/lr_scale", 1) * schedule(row["step"] - 1)
            assert row["train/learning_rate"] == pytest.approx(expected, rel=1e-6), row["step"]


def test_cut_anywhere_it_ends_the_same(unbroken, mesh, step, tmp_path):
    """In order after k steps; and by a kill, after which the last steps are done again."""
    directory, result, _ = unbroken
    for k in range(3, STEPS, 3):
        run(tmp_path / str(k), mesh, step, stop_after=k)
        again, notes = run(tmp_path / str(k), mesh, step)
        np.testing.assert_array_equal(again.state.params["w"], result.state.params["w"])
        assert rows(tmp_path / str(k)) == rows(directory), k
        assert [r["step"] for r in notes[-1]] == [10, 19]


@pytest.mark.parametrize("at", [4, 8, STEPS])
def test_a_validation_that_fails_costs_only_itself(unbroken, mesh, step, tmp_path, at):
    """It was saved before; the same command validates it first, and ends as if nothing had been."""
    directory, result, _ = unbroken

    def fails(params, n):
        if n == at:
            raise MemoryError("of the device")
        return like_early(params, n)

    with pytest.raises(MemoryError):
        run(tmp_path, mesh, step, validate=fails)
    assert Checkpoints(tmp_path, read_only=True).latest() == at
    again, _ = run(tmp_path, mesh, step)
    np.testing.assert_array_equal(again.state.params["w"], result.state.params["w"])
    assert rows(tmp_path) == rows(directory)
    assert finished_steps(tmp_path) == finished_steps(directory)


def test_a_damaged_checkpoint_is_done_again(unbroken, mesh, step, tmp_path, caplog):
    directory, result, _ = unbroken
    run(tmp_path, mesh, step, stop_after=10)
    there = Checkpoints(tmp_path, read_only=True).steps()
    assert len(there) == 2
    largest = (tmp_path / "checkpoints" / str(there[-1]) / "optimizer").rglob("*")
    file = max((p for p in largest if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    again, _ = run(tmp_path, mesh, step)
    assert f"checkpoint {there[-1]} is damaged" in caplog.text
    np.testing.assert_array_equal(again.state.params["w"], result.state.params["w"])
    assert rows(tmp_path) == rows(directory)


def test_a_kill_after_a_rollback_does_it_again(unbroken, mesh, step, tmp_path):
    """Checkpoint of step 8, roll-back at 10, killed at 11: the roll-back is done a second time."""

    def killed(arrays, n):
        if n == 11:
            raise KeyboardInterrupt
        return {"bad_end_rate": 0.9 if n in (9, 10, 18, 19) else 0.0}

    from tests.training import test_loop_guards as this

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(this, "Hooks", lambda **hooks: Hooks(**{**hooks, "summarise": killed}))
        with pytest.raises(KeyboardInterrupt):
            this.run(tmp_path, mesh, step)
    assert Checkpoints(tmp_path, read_only=True).latest() == 8
    again, notes = run(tmp_path, mesh, step)
    assert notes[0] == []  # the one that was undone
    np.testing.assert_array_equal(again.state.params["w"], unbroken[1].state.params["w"])
    assert rows(tmp_path) == rows(unbroken[0])


def test_without_a_best_checkpoint_it_starts_over(mesh, step, tmp_path):
    result, notes = run(tmp_path, mesh, step, broken=(2, 3))
    assert notes[-1][0]["to"] == 0 and result.finished
    by_step = {row["step"]: row for row in rows(tmp_path) if "train/loss" in row}
    assert by_step[4]["train/entropy"] == 1.0


def test_stopping_leaves_a_checkpoint_that_is_not_the_best(mesh, step, tmp_path):
    result, _ = run(tmp_path, mesh, step, bad_end="stop")
    assert not result.finished and int(result.state.step) == 10
    trip = result.stopped_by
    assert trip and trip.guard == "bad_end" and "90.0% of the sampled" in str(trip)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.latest() == 10 and checkpoints.best() == 4
    # Given again, with the guard off, it goes on to the end.
    result, _ = run(tmp_path, mesh, step, bad_end="warn")
    assert result.finished


def test_a_checkpoint_saved_in_breach_does_not_become_the_best(mesh, step, tmp_path):
    """At step 4, the one that validation likes best, captions break off (for one log only)."""
    run(tmp_path, mesh, step, broken=(4,), bad_end="stop")
    assert Checkpoints(tmp_path, read_only=True).best() == 8


def held():
    """How many buffers of the parameter's shape are alive: it and its two moments are three. (What
    saves them may still hold other arrays of the same buffers.)"""
    gc.collect()
    alive = [x for x in jax.live_arrays() if x.shape == (SIZE,)]
    return len({x.addressable_shards[0].data.unsafe_buffer_pointer() for x in alive})


def test_a_resumed_run_holds_its_parameters_once(mesh, step, tmp_path, request):
    """The start is not loaded at all, and nothing of a roll-back is kept either."""
    gc.collect()
    gc.freeze()  # whatever is older: looking through it at every count would take seconds
    request.addfinalizer(gc.unfreeze)
    before = held()
    run(tmp_path, mesh, step, stop_after=6, broken=())
    counts = []

    def validate(params, n):
        counts.append(held() - before)
        return {"CIDEr": float(n)}

    def never():
        raise AssertionError("a resumed run needs no parameters of the start")

    run(tmp_path, mesh, step, initial=never, validate=validate)
    assert counts == [3] * 5
    counts.clear()
    run(tmp_path / "fresh", mesh, step, validate=validate, broken=(2, 3))  # back to the start
    assert counts == [3] * 6


def test_outside_the_main_thread(mesh, step, tmp_path, unbroken):
    """Python lets no other thread handle signals: SIGTERM is left as it was, all else works."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        result, _ = threads.submit(run, tmp_path, mesh, step).result()
    np.testing.assert_array_equal(result.state.params["w"], unbroken[1].state.params["w"])


def test_a_profile_of_some_steps(mesh, step, tmp_path):
    with Profile(tmp_path / "profile", 3, 5) as profile:
        run(tmp_path, mesh, step, stop_after=7, profile=profile)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1


def test_a_checkpoint_of_another_optimizer_structure(mesh, step, tmp_path):
    """Older versions kept a count of the schedule in it."""
    state = step.start(start())
    checkpoints = Checkpoints(tmp_path)
    older = (state.optimizer, optax.ScaleByScheduleState(jnp.int32(3)))
    checkpoints.save(4, state.params, older, {"data": {"n": 4}})
    checkpoints.close()
    with pytest.raises(UserError, match=r"optimizer's state in .* another structure") as caught:
        run(tmp_path, mesh, step)
    assert "\n" not in str(caught.value)
