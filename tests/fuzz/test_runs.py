"""Run directories with broken files: whether they may be resumed, what they were trained on, which
step is meant, and their report."""

from __future__ import annotations

import pathlib
import random

import pytest

from har_jax import checkpoint_files
from har_jax.evaluation import leak
from har_jax.reports.page import write_report
from har_jax.training import run_dir
from har_jax.training.loggers import JsonLines
from tests.fuzz import broken_run
from tests.fuzz.harness import Case, attempt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, broken_run.make(run)


def drawing(whole):
    finished, config = whole
    info = broken_run.info_of(config)

    def draw(rng: random.Random, folder: pathlib.Path) -> Case:
        run = broken_run.copy(finished, folder / "run")
        kind = rng.randrange(5)
        broken_run.breaks(rng, run, "eval/**/*" if kind == 4 and rng.random() < 0.6 else "**/*")

        def call() -> None:
            if kind == 0:
                run_dir.check_run(run, config, info)
                JsonLines(run).truncate_after(4)
                run_dir.note(run, rollbacks=[{"step": 3}])
            elif kind == 1:
                run_dir.read_run(run)
                leak.trained_on(run)
            elif kind == 2:
                checkpoint_files.resolve_step(run, rng.choice(["best", "latest", "4", 6, "8", "x"]))
            elif kind == 3:
                with run_dir.hold(run):
                    checkpoint_files.set_aside(run / "checkpoints")
                    assert checkpoint_files.damage(run / "checkpoints" / "4") == "" or (
                        checkpoint_files.damage(run / "checkpoints" / "6") == ""
                    )
            else:
                assert write_report(run).read_text().startswith("<!")

        return Case(call)

    return draw


def test_runs(whole, tmp_path, record_property):
    attempt("runs", 1000, drawing(whole), tmp_path, record_property)
