"""Checkpoints with broken files: a step is restored as it was saved, or not at all."""

from __future__ import annotations

import pathlib
import random

import jax
import numpy as np
import pytest

from har_jax.checkpoint import Checkpoints, abstract, resolve_step
from tests.fuzz import broken_run
from tests.fuzz.harness import Case, attempt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    broken_run.make(run)
    return run


def drawing(whole):
    params, optimizer = broken_run.state(0)
    wanted = [
        abstract(tree, jax.tree.map(lambda x: x.sharding, tree)) for tree in (params, optimizer)
    ]

    def same(found, step):
        expected = broken_run.state(step)[0]
        assert all(np.array_equal(found[name], value) for name, value in expected.items()), step

    def draw(rng: random.Random, folder: pathlib.Path) -> Case:
        run = broken_run.copy(whole, folder / "run")
        step = rng.choice(["4", "6", "6", "*"])
        broken = broken_run.breaks(rng, run, f"checkpoints/{step}/**/*")
        reading = rng.random() < 0.5

        def call() -> None:
            if reading:
                number = resolve_step(run, rng.choice(["best", "latest", 6]))
                checkpoints = Checkpoints(run, read_only=True)
                same(checkpoints.restore_params(number, wanted[0]), number)
                return
            checkpoints = Checkpoints(run)
            number = checkpoints.latest()
            assert number is not None, broken
            found, moments, progress = checkpoints.restore(number, *wanted)
            same(found, number)
            same({name: value / 2 for name, value in moments[1].items()}, number)
            assert progress["data"] == {"next": number}, broken
            checkpoints.close()

        return Case(call)

    return draw


def test_checkpoints(whole, tmp_path, record_property):
    attempt("checkpoints", 300, drawing(whole), tmp_path, record_property)
