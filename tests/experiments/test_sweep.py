"""Parts are known by their settings; sweeps share them, go on after a kill, and refuse a clash."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from har_jax import command_line, config, reproduce
from har_jax.errors import UserError
from har_jax.experiments import ablations, comparison, paper, runs, systems
from har_jax.experiments.parts import HERE, Input, Part
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.experiments.systems import SCALES, evaluation, training
from tests.conftest import ROOT
from tests.experiments import worlds


def digest(part, content=lambda path: "same"):
    return part.digest(content)


def mle(**changes):
    return training("mle-0", "mle:tiny", {"seed": 0, **changes})


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Commands that only write, in an empty working directory; the log of what they did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "run", worlds.run)

    def log(word="begun"):
        if not pathlib.Path("log.txt").exists():
            return []
        lines = pathlib.Path("log.txt").read_text().splitlines()
        return [line.split(" ", 1)[1] for line in lines if line.startswith(word)]

    return log


# ------------------------------------------------------------------------------ what a part is


def test_a_digest_is_of_settings_contents_and_parents():
    base = digest(mle())
    assert digest(mle()) == base and re.fullmatch("[0-9a-f]{64}", base)
    assert digest(training("other", "mle:tiny", {"seed": 0})) == base  # a name is no setting
    assert digest(mle(seed=1)) != base
    assert digest(mle(**{"optim.lr": 1e-3})) != base
    assert digest(mle(**{"optim.name": "muon"})) == base  # as the preset has it
    assert digest(mle(), content=lambda path: f"another {path}") != base
    scst = [training("scst-0", "scst:tiny", {"seed": 0}, parent=mle(seed=s)) for s in (0, 0, 1)]
    assert digest(scst[0]) == digest(scst[1]) != digest(scst[2])
    assert digest(evaluation(scst[0])) != digest(evaluation(scst[2]))
    assert digest(evaluation(scst[0])) != digest(evaluation(scst[0], step="latest"))


def test_paths_are_not_in_a_digest():
    elsewhere = mle(**{"data.dir": "elsewhere/scenes", "model.encoder": "elsewhere/clip-l"})
    assert digest(elsewhere) == digest(mle())
    assert digest(elsewhere, content=str) != digest(mle(), content=str)
    a, b = (Part(name, "zerocap", {"--clip": Input("c"), "--out": HERE}, "r") for name in "ab")
    assert digest(a) == digest(b)


def test_a_new_setting_at_its_default_changes_no_digest(monkeypatch):
    """What a later version adds leaves finished work finished."""
    before, to_dict = digest(mle()), config.Config.to_dict
    monkeypatch.setattr(config.Config, "to_dict", lambda self: {**to_dict(self), "new": 3})
    monkeypatch.setattr("har_jax.config_file.load", lambda *a: config_of(*a))
    assert digest(mle()) == before


def config_of(spec, overrides):
    from har_jax.presets import mle as presets

    return presets.get_config("tiny")


def test_a_command_is_written_as_it_is_typed(tmp_path):
    sweep = Sweep("runs")
    run = training("scst-0", "scst:tiny", {"seed": 0}, parent=mle(), steps=30)
    assert evaluation(run, limit=4).words(sweep.place) == [
        "--checkpoint=runs/scst-0",
        "--split=test",
        "--limit=4",
        "--out=runs/scst-0/eval/test-first-4",
    ]
    assert run.words(sweep.place) == [
        *("--config=scst:tiny", "--workdir=runs/scst-0", "--config.seed=0", "--config.steps=30"),
        "--config.init_from=runs/mle-0",
    ]


# ------------------------------------------------------------------------------------- sweeps


def test_what_is_finished_is_not_made_again_and_records_tell_its_settings(world):
    assert reproduce.main(["--table=paper", "--seeds=1", "--out=runs"]) == 0
    made = world()
    assert len(made) == len(set(made)) == 9
    assert reproduce.main(["--table=paper", "--seeds=1", "--out=runs"]) == 0
    assert world() == made
    record = json.loads(pathlib.Path("runs/parts/scst-0.json").read_text())
    assert record["finished"] and record["settings"]["stage"] == "scst"
    parent = json.loads(pathlib.Path("runs/parts/mle-0.json").read_text())
    seen = json.loads(pathlib.Path("runs/parts/features-clip-l.json").read_text())
    assert record["parents"] == {
        "--config.data.features": seen["hash"],
        "--config.init_from": parent["hash"],
    }
    assert seen["inputs"]["--encoder"] == record["inputs"]["model.encoder"]
    assert record["inputs"]["model.encoder"].startswith("sha256:")
    assert record["typed"].startswith("python -m har_jax.train --config=scst:tiny")
    inner = json.loads(pathlib.Path("runs/parts/scst-0/eval/test.json").read_text())
    assert inner["parents"] == {"--checkpoint": record["hash"]}
    assert inner["settings"]["--features"] == "none"  # as ZeroCap, it looks at the images


def test_tables_share_what_they_have_in_common(world):
    assert reproduce.main(["--seeds=2", "--out=runs"]) == 0
    trained = {line for line in world() if line.startswith("train")}
    assert trained == {f"train runs/{s}-{n}" for s in ("mle", "scst") for n in (0, 1)}
    assert reproduce.main(["--table=paper", "--seeds=2", "--out=runs"]) == 0
    assert {line for line in world() if line.startswith("train")} == trained
    argv = ["--table=ablations", "--only=loo,mle,pooled", "--seeds=2", "--out=runs"]
    assert reproduce.main(argv) == 0
    more = {line for line in world() if line.startswith("train")} - trained
    names = ("scst-loo", "mle-pooled", "scst-pooled")
    assert more == {f"train runs/{name}-{n}" for name in names for n in (0, 1)}
    made = world()
    assert len(made) == len(set(made))  # nothing twice


def test_other_settings_get_a_directory_of_their_own(world):
    """Neither the run nor its record is touched; its SCST follows it."""
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    before = {p: p.read_bytes() for p in pathlib.Path("runs/mle-0").rglob("*") if p.is_file()}
    assert reproduce.main(["--seeds=1", "--mle-steps=30", "--out=runs"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    names = sorted(p.name for p in pathlib.Path("runs").iterdir())
    assert [re.sub("-[0-9a-f]{8}$", "-HASH", name) for name in names] == [
        *("features-clip-l", "mle-0", "mle-0-HASH", "parts", "scst-0", "scst-0-HASH"),
        "zerocap-first-50",
    ]
    other = next(name for name in names if name.startswith("mle-0-"))
    record = json.loads(pathlib.Path(f"runs/parts/{other}.json").read_text())
    assert record["settings"]["steps"] == 30 and record["hash"].startswith(other[-8:])
    made = world()
    assert reproduce.main(["--seeds=1", "--mle-steps=30", "--out=runs"]) == 0
    assert world() == made  # and is found again


def test_another_dataset_under_the_same_name_is_another_part(world):
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    captions = pathlib.Path("data/scenes/captions.test.json")
    captions.write_text(captions.read_text().replace("ball", "disc"))
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    assert len([line for line in world() if line.startswith("train")]) == 4


def test_a_directory_that_holds_something_else_is_left_alone(world, capsys):
    for name in ("mle-0", "mle-0/eval/test"):
        shutil.rmtree("runs", ignore_errors=True)
        place = pathlib.Path("runs") / name
        if name != "mle-0":  # a run of this sweep, evaluated by hand
            with open_sweep("runs") as sweep:
                runs.prepare(runs.SCENES)
                sweep.make(comparison.two_stages("tiny", 0)[0])
        place.mkdir(parents=True)
        (place / "mine.txt").write_text("mine")
        assert reproduce.main(["--seeds=1", "--out=runs"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {place} is there, but runs/parts has no record of it")
        assert (place / "mine.txt").read_text() == "mine"


def test_a_part_whose_directory_is_gone_is_made_again(world):
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    shutil.rmtree("runs/mle-0")
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    again = world()[-2:]
    assert again == ["train runs/mle-0", "evaluate runs/mle-0/eval/test"]


def test_a_command_that_leaves_nothing_is_not_finished(world, monkeypatch):
    monkeypatch.setattr(command_line, "run", lambda name, argv: 0)
    with open_sweep("runs") as sweep:
        with pytest.raises(RuntimeError, match="left no runs/mle-0/checkpoints"):
            sweep.make(mle())
        assert not sweep.finished(mle())


def test_one_works_in_a_directory_at_a_time(world, capsys):
    with open_sweep("runs"):
        assert reproduce.main(["--seeds=1", "--out=runs"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: another reproduce works in runs") and error[-1] == "\n"
        assert error.count("\n") == 1 and not world()
        assert reproduce.main(["--seeds=1", "--out=other"]) == 0
        assert reproduce.main(["--seeds=1", "--out=runs", "--dry-run"]) == 0  # only looks
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0


def test_a_file_is_no_directory(world, capsys):
    pathlib.Path("runs").write_text("")
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 2
    assert "--out=runs: cannot write there" in capsys.readouterr().err
    assert reproduce.main(["--seeds=1", "--out=runs/x"]) == 2


# ------------------------------------------------------------------------------------- a kill


@pytest.mark.parametrize("slow", ["mle-0", "test", "zerocap-first-50"])
def test_killed_it_goes_on_where_it_was(tmp_path, slow):
    """kill -9 while a part is half made: the same command makes it, and what comes after it."""
    command = [sys.executable, "-m", "tests.experiments.worlds", "--seeds=1", "--out=runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log.txt"
    with subprocess.Popen(
        command, cwd=tmp_path, env={**environment, "SLOW": slow}, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(f"runs/**/{slow}/partial")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    ended = [line for line in log.read_text().splitlines() if line.startswith("ended")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert lines[: 2 * len(ended)].count(ended[-1]) == 1
    for line in ended:  # what had ended was not begun again
        assert lines.count(line) == lines.count(line.replace("ended", "begun")) == 1
    half = [line for line in lines if line.startswith("begun") and line.endswith(f"/{slow}")]
    assert len(half) == (3 if slow == "test" else 2)  # `test` is of both runs
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs/parts").rglob("*.json")]
    assert len(records) == 6 and all(record["finished"] for record in records)


# ----------------------------------------------------------------------------------- mistakes


def test_what_the_user_brings_is_asked_for(world, capsys):
    assert reproduce.main(["--table=paper", "--scale=full", "--out=runs"]) == 2
    error = capsys.readouterr().err
    assert "--scale=full needs data/coco, models/clip-vit-base-patch32, models/gpt2-medium" in error
    assert not world()
    assert reproduce.main(["--table=paper", "--scale=full", "--seeds=1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "--config=mle:coco" in printed and "--lm=models/gpt2-medium" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only=loo"], "--only belongs to --table=ablations, not to comparison"),
        (["--table=paper", "--skewed-seeds=1"], "--skewed-seeds belongs to --table=rewards"),
        (["--limit=5"], "--limit belongs to --table=paper or ablations"),
        (["--table=paper", "--limit=1"], "--limit=1: give at least 2 images"),
        (["--mle-steps=0"], "--mle-steps: it is 0; it must be at least 1"),
        (["--mle-steps=9"], "config.optim.warmup_steps=25 is longer than the run"),
        (["--first-seed=-1"], "--first-seed: it is -1; it must be at least 0"),
        (["--table=ablations", "--only=lo"], "there is no ablation 'lo' (did you mean 'loo'?)"),
        (["--table=ablations", "--only=,"], "names no ablation"),
        (["--table=ablations", "--scale=full"], "is of the scenes"),
    ],
)
def test_mistakes(world, argv, message, capsys):
    assert reproduce.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not world() and not list(pathlib.Path().rglob("*.json"))


def test_the_judge_of_a_scale_is_the_one_of_its_preset():
    from har_jax import config_file

    for name, scale in systems.SCALES.items():
        settings = config_file.load(f"mle:{scale.preset}")
        assert settings.eval.clip_score == scale.judge and settings.data.dir == scale.data, name


def test_every_training_of_the_tables_is_a_valid_configuration():
    settings = paper.Settings("tiny", pathlib.Path("runs"), [3], (70, 90))
    parts = [part for system in paper.systems(settings) for part in system.evaluations]
    parts += [ablations.scored(row, 3, settings) for row in ablations.ABLATIONS]
    digests = {}
    while parts:
        parents = list(parts.pop().parents.values())
        parts += parents
        for part in parents:
            digests.setdefault(digest(part, content=str), set()).add(part.name)
    assert all(len(names) == 1 for names in digests.values()), "one part has two names"
    names = [name for own in digests.values() for name in own]
    assert len(names) == len(set(names)), "two parts have one name"


def test_names_of_ablations_are_unique():
    names = [row.name for row in ablations.ABLATIONS]
    assert len(names) == len(set(names)) and ablations.ABLATIONS[0] is ablations.BASE
    with pytest.raises(UserError, match="har, mle, pooled"):
        ablations.pick("nothing")
    assert SCALES["tiny"].world is runs.SCENES and comparison.ZEROCAP_IMAGES >= 2
