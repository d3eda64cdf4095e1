"""`har_jax.train` as a user meets it: the way through both stages, and what each mistake says."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import har_jax
from har_jax import config_file, train
from har_jax.checkpoint import Checkpoints
from har_jax.config import OptimConfig
from har_jax.errors import UserError
from har_jax.sessions import run as session
from har_jax.sessions.plan import plan_session
from har_jax.text.tokenizer import train_tokenizer
from har_jax.training.optimizer import make_schedule
from tests.conftest import ROOT, xla_flags
from tests.helpers import long
from tests.training.commands import train_arguments


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def runs(workspace, tmp_path_factory):
    """One MLE and one SCST run of a few steps, on all eight devices."""
    here = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert train.main(train_arguments(workspace, here / "mle")) == 0
        argv = train_arguments(
            workspace, here / "scst", "scst", init_from=here / "mle", scst__samples=2, eval__every=2
        )
        assert train.main(argv) == 0
    return here


def mistake(capsys, argv):
    """Runs a command that must fail: exit code 2 and one line, which is returned."""
    code = train.main(argv)
    err = capsys.readouterr().err
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    return lines[0]


def test_both_stages_leave_a_complete_run(runs):
    info = json.loads((runs / "scst/run.json").read_text())
    assert info["stage"] == "scst"
    assert info["parent"] == {"run": str(runs / "mle"), "step": 4, "stage": "mle"}
    assert info["reward_signature"].startswith("CIDEr-D[n4,s6.0]+eos+df[train,N=48,")
    assert info["reward_signature"].endswith("+baseline[greedy,K=2]")
    rows = [json.loads(x) for x in (runs / "scst/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/reward" in row]
    assert [row["step"] for row in logged] == [2, 4]
    assert all(row["train/logp_drift"] < 1e-4 for row in logged)
    assert {"train/reward_greedy", "train/bad_end_rate", "train/entropy"} <= logged[0].keys()
    assert [row["step"] for row in rows if "val/CIDEr" in row] == [2, 4]
    assert list((runs / "scst/tensorboard").glob("events.*"))
    assert (runs / "scst/samples.jsonl").read_text().count("\n") >= 8
    assert "Self-critical training: scst, after mle" in (runs / "scst/report.html").read_text()
    assert "Maximum likelihood: mle" in (runs / "mle/report.html").read_text()


def test_frozen_means_frozen(runs):
    checkpoints = Checkpoints(runs / "mle", read_only=True)
    import orbax.checkpoint as ocp

    path = checkpoints.directory / str(checkpoints.latest())
    names = set(ocp.StandardCheckpointer().restore(path / "params"))
    assert names and not any(name.startswith("vision.") for name in names)
    assert any(name.startswith("projector.") for name in names)
    optimizer = ocp.StandardCheckpointer().metadata(path / "optimizer").item_metadata
    assert "vision." not in str(jax.tree_util.tree_flatten_with_path(optimizer)[0])


def test_library_call_equals_the_command(runs, workspace):
    """Loaded in Python, on another mesh: the same captions, from pixels and from files."""
    from har_jax.data.dataset import open_split

    split = open_split(workspace / "data", "test")
    images = [split[i].image for i in range(8)]
    captioner = har_jax.load_captioner(runs / "scst")
    texts = captioner.generate(images)
    assert len(texts) == 8 and all(isinstance(text, str) for text in texts)
    one = har_jax.load_captioner(
        runs / "scst",
        mesh=jax.sharding.Mesh(
            np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor")
        ),
    )
    assert one.generate(images) == texts
    assert one.generate(images[:3], batch_size=2) == texts[:3]
    pixels = np.stack([captioner.preprocessor(image) for image in images])
    assert captioner.generate(pixels) == texts
    assert len(captioner.generate(images, method="beam", beams=3)) == 8
    assert captioner.generate(images, method="sample", seed=1) == captioner.generate(
        images, method="sample", seed=1
    )
    with pytest.raises(UserError, match=r"did you mean 'greedy'\?"):
        captioner.generate(images, method="gredy")


def losses(run):
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize("stage", [*long(["mle"]), "scst"])
def test_one_and_eight_devices_give_the_same_losses(runs, workspace, tmp_path, stage):
    """data × fsdp × tensor against one device, which a process of its own has; and the decoder's
    parameters stacked there and not here, in SCST unlike the MLE run that it starts from."""
    extra = {"init_from": runs / "mle", "scst__samples": 2} if stage == "scst" else {}
    common = {"steps": 6, "log_every": 1, **extra}
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__scan_layers": True}
    assert train.main(train_arguments(workspace, tmp_path / "8", stage, **common, **mesh)) == 0
    argv = train_arguments(workspace, tmp_path / "1", stage, **common)
    done = subprocess.run(
        [sys.executable, "-m", "tests.child", "har_jax.train", *argv],
        env={**os.environ, "XLA_FLAGS": xla_flags(1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "8")) == 6
    np.testing.assert_allclose(losses(tmp_path / "8"), losses(tmp_path / "1"), rtol=2e-4, atol=2e-4)
    params = har_jax.load_captioner(tmp_path / "8").params
    for name in ("attn.q", "mlp.down"):
        assert params[f"lm.layers.{name}.kernel"].shape[0] == 2  # layers


def test_steps_compile_once(runs, workspace, tmp_path):
    argv = train_arguments(
        workspace, tmp_path / "run", "scst", init_from=runs / "mle", steps=20, scst__samples=2,
        eval__every=8,
    )  # fmt: skip
    arguments, overrides = train.parse(argv)
    config = config_file.load(arguments.config, overrides)
    outcome = session.train(plan_session(config, tmp_path / "run"))
    assert outcome.finished and outcome.step == 20
    assert outcome.compilations == 1


def test_a_mixed_reward_logs_its_parts(runs, workspace, tmp_path, capsys, on_one_device):
    argv = train_arguments(
        workspace, tmp_path / "run", "scst", init_from=runs / "mle", scst__samples=2,
        scst__reward="cider_d + 0.5*bleu - 1.0*repetition",
    )  # fmt: skip
    assert train.main(argv) == 0
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    parts = {key for row in rows for key in row if key.startswith("train/reward_part/")}
    assert parts == {f"train/reward_part/{n}" for n in ("cider_d", "bleu", "repetition")}
    signature = json.loads((tmp_path / "run/run.json").read_text())["reward_signature"]
    assert "BLEU" in signature and "CIDEr-D[" in signature
    capsys.readouterr()
    argv = train_arguments(
        workspace, tmp_path / "other", "scst", init_from=runs / "mle", scst__reward="cidr_d"
    )
    assert "did you mean 'cider_d'" in mistake(capsys, argv)


def test_a_reward_that_raises_stops_with_its_own_traceback(
    runs, workspace, tmp_path, monkeypatch, on_one_device
):
    from har_jax.rewards.cider_d import CiderDReward

    def broken(self, image_ids, captions, ended):
        raise KeyError("a mistake in the reward")

    monkeypatch.setattr(CiderDReward, "__call__", broken)
    argv = train_arguments(
        workspace, tmp_path / "run", "scst", init_from=runs / "mle", scst__samples=2
    )
    with pytest.raises(KeyError, match="a mistake in the reward"):
        train.main(argv)
    assert not Checkpoints(tmp_path / "run").steps()  # nothing of it was saved


# ---------------------------------------------------------------------------------- mistakes


def test_unknown_key(workspace, tmp_path, capsys):
    argv = [*train_arguments(workspace, tmp_path / "run"), "--config.optim.lrr=1"]
    assert "did you mean 'config.optim.lr'?" in mistake(capsys, argv)
    assert not (tmp_path / "run").exists()


def test_unknown_argument(workspace, tmp_path, capsys):
    argv = [*train_arguments(workspace, tmp_path / "run"), "--sede=1"]
    assert "unknown argument '--sede=1'" in mistake(capsys, argv)


def test_missing_dataset(workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", data__dir=tmp_path / "nothing")
    assert "does not exist; make one with" in mistake(capsys, argv)


def test_missing_split(workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", data__val_split="vla")
    assert "did you mean 'val'?" in mistake(capsys, argv)


def test_missing_model(workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", model__lm=tmp_path / "nothing")
    assert "no directory" in mistake(capsys, argv)


def test_missing_scorer(workspace, tmp_path, capsys):
    """Only a validation would load it: found before the first step all the same."""
    argv = train_arguments(workspace, tmp_path / "run", eval__clip_score=tmp_path / "nothing")
    assert "config.eval.clip_score: no directory" in mistake(capsys, argv)
    assert not (tmp_path / "run").exists()


def test_missing_parent(workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", "scst", init_from=tmp_path / "nothing")
    assert "there is no run directory" in mistake(capsys, argv)


def test_parent_without_a_checkpoint(runs, workspace, tmp_path, capsys):
    for name in ("config.json", "run.json"):
        (tmp_path / "young").mkdir(exist_ok=True)
        shutil.copy(runs / "mle" / name, tmp_path / "young" / name)
    argv = train_arguments(workspace, tmp_path / "run", "scst", init_from=tmp_path / "young")
    assert "holds no checkpoints" in mistake(capsys, argv)


def test_parent_of_another_stage(runs, workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", "scst", init_from=runs / "scst")
    assert "is a run of stage 'scst'; SCST starts from an MLE run" in mistake(capsys, argv)


def test_parent_with_another_projector(runs, workspace, tmp_path, capsys):
    argv = train_arguments(
        workspace, tmp_path / "run", "scst", init_from=runs / "mle", model__projector="pooled"
    )
    assert "was trained with model.projector='patch'" in mistake(capsys, argv)


def test_parent_with_another_tokenizer(runs, workspace, tmp_path, capsys):
    other = tmp_path / "mistral"
    shutil.copytree(workspace / "models/mistral", other)
    train_tokenizer(["other words make other pieces of words"] * 9, 300, other)
    argv = train_arguments(
        workspace, tmp_path / "run", "scst", init_from=runs / "mle", model__lm=other
    )
    assert "was trained with another tokenizer" in mistake(capsys, argv)


def test_batch_that_the_mesh_cannot_divide(workspace, tmp_path, capsys):
    argv = train_arguments(workspace, tmp_path / "run", batch_size=12)
    assert "config.batch_size=12 cannot be divided over 8 devices" in mistake(capsys, argv)
    assert not (tmp_path / "run").exists()


def test_workdir_that_is_no_run(workspace, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    argv = train_arguments(workspace, tmp_path)
    assert "holds files but is not a run" in mistake(capsys, argv)


def test_help_and_print_config(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    assert "configs/scst.py:tiny" in capsys.readouterr().out
    assert train.main(["--config=configs/scst.py:tiny", "--print-config"]) == 0
    assert "init_from: runs/mle" in capsys.readouterr().out


def test_a_run_resumes_by_its_directory_alone(runs, tmp_path, capsys, on_one_device):
    """With the settings that it was begun with; what happens to the schedule of a longer one is
    told."""
    run = tmp_path / "mle"
    shutil.copytree(runs / "mle", run)
    before = (run / "config.json").read_text()
    assert train.main([f"--workdir={run}"]) == 0
    said = capsys.readouterr().err
    assert "resumed at step 4 of 4" in said and "schedule" not in said
    assert json.loads((run / "config.json").read_text()) == json.loads(before)
    config = json.loads(before)
    assert train.main([f"--workdir={run}", "--config.steps=6", "--config.eval.images=8"]) == 0
    said = capsys.readouterr().err
    schedules = [make_schedule(OptimConfig(**config["optim"]), steps)(4) for steps in (4, 6)]
    told = f"at step 4 is {schedules[1]:.2g}, where it was {schedules[0]:.2g}"
    assert "config.steps was 4 and is now 6" in said and told in said
    assert 0 < schedules[1] < config["optim"]["lr"]
    assert "step 6/6" in said
    assert "config.optim.lr was" in mistake(capsys, [f"--workdir={run}", "--config.optim.lr=3"])
    assert "no run has begun" in mistake(capsys, [f"--workdir={tmp_path}/other"])
    assert "--workdir alone" in mistake(capsys, [])
