"""The table of rewards: its commands are valid, and it says what was scored."""

import json
import pathlib

import pytest

from har_jax import command_line, config_file, reproduce, train
from har_jax.experiments import rewards as experiments
from har_jax.experiments.rewards import _QUALITY as QUALITY
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.reports.tables import contrast, differences, markdown_table
from har_jax.rewards import mix


def scores(cider, clip, bad=0.0):
    return {
        "n_images": 8,
        "CIDEr": cider,
        "CLIPScore": clip,
        "health": {"bad_end_rate": bad, "mean_length": 9.0},
        "bias": {"unsupported_rate": bad},
    }


SYSTEMS = {
    "MLE": [scores(1.0, 0.70), scores(1.2, 0.74)],
    "SCST": [scores(1.5, 0.72, 0.1), scores(1.6, 0.70, 0.2)],
}


def test_every_training_of_the_series_is_a_valid_configuration(tmp_path):
    settings = experiments.Settings(tmp_path, [0, 1], mle_steps=30, scst_steps=40)
    stages = []
    for system in experiments.SYSTEMS:
        part = experiments.run_of(system, 1, settings)
        arguments, overrides = train.parse(part.words(Sweep(tmp_path).place))
        config = config_file.load(arguments.config, overrides)
        assert config.seed == 1 and config.steps == (40 if system.reward else 30)
        assert config.data.dir == system.world.data
        assert config.eval.clip_score != config.scst.reward_clip  # what scores does not reward
        stages.append(config.stage)
        if system.reward:
            assert pathlib.Path(config.init_from).name.removesuffix("-1").endswith("mle")
            assert mix.parse(config.scst.reward) and config.scst.baseline == system.baseline
    assert stages.count("mle") == 2  # one for each world
    assert {system.baseline for system in experiments.SYSTEMS} == {"greedy", "leave_one_out"}


def test_a_dry_run_prints_the_series_and_does_nothing(tmp_path, capsys):
    out = tmp_path / "rewards"
    argv = ["--table=rewards", "--seeds=2", f"--out={out}", "--dry-run"]
    assert reproduce.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.count("-m har_jax.train ") == 2 * len(experiments.SYSTEMS)
    assert printed.count("-m har_jax.evaluate ") == 2 * len(experiments.SYSTEMS)
    assert not out.exists()


def test_a_dry_run_of_the_comparison(tmp_path, capsys, monkeypatch):
    """One whole seed: the data, MLE, SCST from it, and an evaluation of each."""
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["--seeds=1", "--out=runs", "--dry-run"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line]
    starts = ["prepare scenes", "prepare foundation", "prepare features"]
    starts += ["train", "evaluate", "train", "evaluate", "zerocap"]
    assert len(commands) == len(starts) and not any(tmp_path.iterdir())
    for line, start in zip(commands, starts, strict=True):
        assert line.startswith(f"$ python -m har_jax.{start} ")
    assert commands[5].endswith(
        "--config=scst:tiny --workdir=runs/scst-0 --config.seed=0 "
        "--config.data.features=runs/features-clip-l --config.init_from=runs/mle-0"
    )


def test_the_table_and_the_scores_behind_it(tmp_path, monkeypatch):
    settings = experiments.Settings(tmp_path, [0, 1])

    def run(name, argv):
        flags = dict(word.split("=", 1) for word in argv if "=" in word)
        if name == "train":
            (pathlib.Path(flags["--workdir"]) / "checkpoints").mkdir(parents=True)
        elif name == "evaluate":
            place = pathlib.Path(flags["--out"])
            name, _, seed = place.parent.parent.name.rpartition("-")
            i = [system.name for system in experiments.SYSTEMS].index(name)
            place.mkdir(parents=True)
            written = json.dumps(scores(1 + i / 10 + int(seed), 0.5, i / 100))
            (place / "scores.json").write_text(written)
        return 0

    monkeypatch.setattr(command_line, "run", run)
    experiments.run(settings)
    with open_sweep(tmp_path) as sweep:
        text = experiments.report(settings, sweep)
    assert (tmp_path / "rewards.md").read_text() == text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(experiments.SYSTEMS) + 2  # and two headers
    (clip,) = [line for line in rows if line.startswith("| SCST, CIDEr-D + 2 CLIPScore |")]
    assert "| 1.800 ± 0.707 |" in clip
    assert (
        "- SCST, leave-one-out against SCST, greedy baseline: CIDEr +0.100 (+0.100 to +0.100)"
        in text
    )
    assert "unsupported words +1.0 pt (+1.0 pt to +1.0 pt)" in text
    kept = json.loads((tmp_path / "rewards.json").read_text())
    assert kept["clip"]["reward"] == "cider_d + 2*clip_score"
    assert kept["mle"]["scores"]["1"]["CIDEr"] == 2.0


def test_rows_are_systems_and_missing_values_are_not_averaged():
    lines = markdown_table({**SYSTEMS, "other": [scores(None, 0.7), scores(1.0, 0.7)]}, QUALITY)
    header, rule, mle, scst, other = lines.splitlines()
    assert header == "| | CIDEr | CLIPScore | words | bad endings |"
    assert rule.count("---:") == 4
    assert mle == "| MLE | 1.100 ± 0.141 | 0.720 ± 0.028 | 9.0 ± 0.0 | 0.0 ± 0.0 % |"
    assert scst.endswith("| 15.0 ± 7.1 % |") and other.startswith("| other | – |")


def test_differences_are_taken_seed_by_seed():
    assert differences(SYSTEMS["SCST"], SYSTEMS["MLE"], "CIDEr") == pytest.approx([0.5, 0.4])
    assert differences(SYSTEMS["SCST"], SYSTEMS["MLE"], "Bleu_4") is None
    text = contrast(SYSTEMS, "SCST", "MLE", QUALITY[:3])
    assert text == (
        "SCST against MLE: CIDEr +0.450 (+0.400 to +0.500), CLIPScore -0.010 (-0.040 to +0.020)"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--table=rewards", "--scale=full"], "is of the scenes"),
        (["--table=rewards", "--scst-steps=0"], "--scst-steps: it is 0; it must be at least 1"),
        (["--table=rewards", "--seeds=0"], "--seeds: it is 0; it must be at least 1"),
    ],
)
def test_mistakes(argv, message, capsys):
    assert reproduce.main(argv) == 2
    assert message in capsys.readouterr().err
