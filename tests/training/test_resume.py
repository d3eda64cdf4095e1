"""A killed run continues bit for bit, signals leave in order, and one run has one training."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from har_jax.checkpoint import Checkpoints, finished_steps
from tests.conftest import ROOT, xla_flags
from tests.training.commands import train_arguments

pytestmark = pytest.mark.usefixtures("signals_are_heard")

STEPS = 60


def arguments(workspace, run, **overrides):
    settings = {"steps": STEPS, "checkpoint_every": 4, "data__val_split": "", **overrides}
    return train_arguments(workspace, run, **settings)


def start(argv, devices=1):
    env = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices),
        "NPROC": "32",
        "HAR_PROGRESS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.child", "har_jax.train", *argv],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def final_params(run, steps=STEPS):
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(run, read_only=True)
    assert checkpoints.latest() == steps
    path = checkpoints.directory / str(steps) / "params"
    return ocp.StandardCheckpointer().restore(path)


def finish(argv, seconds=300):
    process = start(argv)
    _, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return err


def steps_logged(run):
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    lines = [json.loads(x) for x in file.read_text().splitlines() if x.endswith("}")]
    return [row["step"] for row in lines if "train/loss" in row]


@pytest.fixture(scope="module")
def unbroken_of(workspace, tmp_path_factory):
    """From a number of steps to the run that was left alone for so long."""

    @functools.cache
    def make(steps):
        run = tmp_path_factory.mktemp("runs") / "unbroken"
        finish(arguments(workspace, run, steps=steps))
        return run

    return make


@pytest.fixture
def unbroken(unbroken_of):
    return unbroken_of(STEPS)


@pytest.fixture(scope="module")
def parent(workspace, tmp_path_factory):
    """An MLE run that SCST starts from."""
    run = tmp_path_factory.mktemp("parent") / "mle"
    finish(arguments(workspace, run, steps=8), 3600)
    return run


def scst_arguments(workspace, parent, run, **overrides):
    settings = {
        "init_from": parent,
        "scst__samples": 2,
        "data__val_split": "val",
        "eval__every": 10,
    }
    return train_arguments(
        workspace, run, "scst", **{"checkpoint_every": 4, "log_every": 1, **settings, **overrides}
    )


def kill_at_random(argv, run, kills, dice):
    """Starts a training so often, and kills it: between steps, in a step, in a validation, in a
    save, in a log line. A part of them before their first step."""
    for _ in range(kills):
        before = (steps_logged(run) or [0])[-1]
        target = before + dice.randrange(0, 6)
        process = start(argv)
        deadline = time.monotonic() + 1200
        while time.monotonic() < deadline and process.poll() is None:
            logged = steps_logged(run)
            saving = dice.random() < 0.02 and list(run.glob("checkpoints/*tmp*"))
            if saving or (logged and logged[-1] > target):
                break
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed often"


def assert_same(expected, got, steps):
    """Parameters bit for bit, and logs and scores of one run that nothing happened to."""
    first, second = final_params(expected, steps), final_params(got, steps)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    assert steps_logged(got) == sorted(set(steps_logged(got)))  # no step twice
    assert steps_logged(got)[-1] == steps
    assert finished_steps(expected) == finished_steps(got)
    assert scores_logged(expected) == scores_logged(got)
    assert not list((got / "checkpoints").glob("damaged*"))


def scores_logged(run):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["val/CIDEr"]) for row in lines if "val/CIDEr" in row]


@pytest.mark.parametrize(
    ("kills", "steps"), [(2, STEPS), pytest.param(50, 400, marks=pytest.mark.kill)]
)
def test_kills_change_nothing(workspace, unbroken_of, tmp_path, kills, steps):
    run = tmp_path / "killed"
    argv = arguments(workspace, run, steps=steps)
    kill_at_random(argv, run, kills, random.Random(kills))
    finish(argv)
    assert_same(unbroken_of(steps), run, steps)


@pytest.mark.kill
def test_kills_change_nothing_of_scst(workspace, parent, tmp_path):
    """Validated on the way: the best checkpoint is the same one, too."""
    steps = 320
    whole, run = tmp_path / "unbroken", tmp_path / "killed"
    finish(scst_arguments(workspace, parent, whole, steps=steps), 3600)
    argv = scst_arguments(workspace, parent, run, steps=steps)
    kill_at_random(argv, run, 50, random.Random(0))
    finish(argv, 3600)
    assert_same(whole, run, steps)


def when_logging(argv, run):
    """A training that has logged a step."""
    process = start(argv)
    deadline = time.monotonic() + 120
    while not steps_logged(run) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_leaves(workspace, unbroken, tmp_path, name):
    run, number = tmp_path / "preempted", signal.Signals[name]
    argv = arguments(workspace, run, checkpoint_every=1000)
    process = when_logging(argv, run)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err and f"{name}: saving after this step" in err
    saved = Checkpoints(run, read_only=True).latest()
    assert saved is not None and 0 < saved < STEPS
    if name == "SIGTERM":
        finish(argv)
        assert_same(unbroken, run, STEPS)


def test_a_signal_does_not_wait_where_nothing_is_unsaved(workspace, tmp_path):
    """As while a step is compiled: the process is in XLA, and no handler of Python would run."""
    run = tmp_path / "compiling"
    process = start(arguments(workspace, run))
    while not (run / "run.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    other = start(arguments(workspace, run))  # a second training, meanwhile
    _, err = other.communicate(timeout=120)
    assert other.returncode == 2 and err.count("error: ") == 1, err
    assert f"another training is at work in --workdir={run} (process {process.pid} on" in err
    process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err, err
    assert time.monotonic() - began < 5


HANGS = """
import time
import numpy as np
calls = []
def reward(image_ids, captions, ended):
    calls.append(1)
    if len(calls) > 2:
        time.sleep(3600)
    return np.zeros(ended.shape, np.float32)
"""


@pytest.mark.parametrize("ending", ["time limit", "signal"])
def test_a_reward_that_hangs(workspace, parent, tmp_path, monkeypatch, ending):
    (tmp_path / "hanging.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    seconds = 2 if ending == "time limit" else 600
    argv = scst_arguments(
        workspace,
        parent,
        tmp_path / "run",
        steps=STEPS,
        checkpoint_every=1 if ending == "time limit" else 1000,
        scst__reward="hanging:reward",
        scst__reward_timeout=seconds,
        data__val_split="",
        eval__every=0,
    )
    process = when_logging(argv, tmp_path / "run")
    if ending == "signal":
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (2 if ending == "time limit" else 143), err
    assert "Traceback" not in err and "reward hanging:reward had not returned after" in err, err
    if ending == "time limit":  # the steps before it are kept
        assert Checkpoints(tmp_path / "run", read_only=True).steps()
    else:
        assert "what came after step 0 was not saved" in err


def test_another_configuration_is_refused(workspace, unbroken):
    process = start(arguments(workspace, unbroken, optim__lr=2e-3))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "config.optim.lr was 0.001 and is now 0.002" in err
