"""A killed run continues bit for bit; SIGTERM leaves in order; a changed run is refused."""

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

from har_jax.checkpoint import Checkpoints
from tests.conftest import ROOT, xla_flags
from tests.training.commands import train_arguments

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
        [sys.executable, "-m", "har_jax.train", *argv],
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


def finish(argv):
    process = start(argv)
    _, err = process.communicate(timeout=300)
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


@pytest.mark.parametrize(
    ("kills", "steps"), [(2, STEPS), pytest.param(10, 200, marks=pytest.mark.kill)]
)
def test_kills_change_nothing(workspace, unbroken_of, tmp_path, kills, steps):
    run = tmp_path / "killed"
    argv = arguments(workspace, run, steps=steps)
    dice = random.Random(kills)
    for _ in range(kills):
        before = (steps_logged(run) or [0])[-1]
        # Some further steps, then a moment at random: between steps, in a save, in a log line.
        target = before + dice.randrange(1, 6)
        process = start(argv)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            logged = steps_logged(run)
            if logged and logged[-1] > target:
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed often"
    finish(argv)
    expected, got = final_params(unbroken_of(steps), steps), final_params(run, steps)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert np.array_equal(value, got[name]), name
    assert steps_logged(run) == sorted(set(steps_logged(run)))  # no step twice
    assert steps_logged(run)[-1] == steps


def test_sigterm_saves_and_leaves(workspace, unbroken, tmp_path):
    run = tmp_path / "preempted"
    argv = arguments(workspace, run, checkpoint_every=1000)
    process = start(argv)
    deadline = time.monotonic() + 120
    while not steps_logged(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    saved = Checkpoints(run, read_only=True).latest()
    assert saved is not None and 0 < saved < STEPS
    finish(argv)
    expected, got = final_params(unbroken), final_params(run)
    assert all(np.array_equal(expected[n], got[n]) for n in expected)


def test_another_configuration_is_refused(workspace, unbroken):
    process = start(arguments(workspace, unbroken, optim__lr=2e-3))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "config.optim.lr was 0.001 and is now 0.002" in err
