"""Configurations: what is accepted, and what a mistake says."""

import pathlib

import pytest

from har_jax import config as configs
from har_jax.config import Config, check_devices, load
from har_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("stage", ["mle", "scst"])
@pytest.mark.parametrize("preset", ["tiny", "coco"])
def test_every_shipped_config_loads(stage, preset):
    config = load(f"configs/{stage}.py:{preset}")
    assert config.stage == stage
    assert Config.from_dict(config.to_dict()) == config


def test_stages_agree_on_the_model():
    for preset in ("tiny", "coco"):
        mle, scst = (load(f"configs/{stage}.py:{preset}") for stage in ("mle", "scst"))
        assert mle.model == scst.model and mle.data == scst.data


def test_overrides_keep_their_types():
    config = load(
        "configs/scst.py:tiny",
        {"optim.lr": "1e-5", "steps": "7", "init_from": "runs/1", "data.cache_images": "false"},
    )
    assert (config.optim.lr, config.steps, config.init_from) == (1e-5, 7, "runs/1")
    assert config.data.cache_images is False
    assert load("configs/mle.py:tiny", {"optim.lr": "1"}).optim.lr == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.lrr": "1"}, r"unknown key config.optim.lrr \(did you mean 'config.optim.lr'\?\)"),
        ({"optm.lr": "1"}, r"did you mean 'config.optim'\?"),
        ({"learning_rate": "1"}, r"did you mean 'config.optim.lr'\?"),
        ({"optim": "1"}, "names a section"),
        ({"stage": "mel"}, r"did you mean 'mle'\?\); allowed: mle, scst"),
        ({"steps": "many"}, "config.steps is 'many' .str.; it must be int"),
        ({"steps": "1.5"}, "must be int"),
        ({"steps": "0"}, "must be above 0"),
        ({"optim.lr": "nan"}, "config.optim.lr"),
        ({"optim.lr": "-1"}, "config.optim.lr is -1.0"),
        ({"data.dir": ""}, "config.data.dir is not set"),
        ({"init_from": ""}, "config.init_from is not set"),
        ({"scst.baseline": "leave_one_out", "scst.samples": "1"}, "needs config.scst.samples >= 2"),
        ({"scst.baseline": "both", "scst.samples": "1"}, "'both' needs config.scst.samples"),
        ({"steps.x": "1"}, "unknown key config.steps.x"),
        ({"guards.length": "roll_back"}, r"did you mean 'rollback'\?\); allowed: off, warn, stop"),
        ({"guards.kl_limit": "0"}, "config.guards.kl_limit is 0.0; it must be above 0"),
        ({"guards.rollback_lr_factor": "1.5"}, "must be above 0 and at most 1"),
        ({"guards.max_rollbacks": "-1"}, "must be 0 or more"),
        ({"scst.doctor": "maybe"}, "allowed: on, warn, off"),
    ],
)
def test_mistakes_are_one_clear_line(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load("configs/scst.py:tiny", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("configs/scst.py:tinny", r"no such preset \(did you mean 'tiny'\?\); .* has tiny, coco"),
        ("configs/nothing.py", "there is no file"),
        ("setup.cfg", "not a Python file|not valid Python"),
    ],
)
def test_a_wrong_file_or_preset(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


def test_init_from_belongs_to_scst():
    with pytest.raises(UserError, match="belongs to SCST"):
        load("configs/mle.py:tiny", {"init_from": "runs/mle"})


def test_a_batch_that_the_mesh_cannot_divide():
    config = load("configs/mle.py:tiny", {"batch_size": "12"})
    with pytest.raises(UserError, match=r"config.batch_size=12 cannot be divided over 8 devices"):
        check_devices(config, 8)
    with pytest.raises(UserError, match="does not fit 8 device"):
        check_devices(load("configs/mle.py:tiny", {"mesh.data": "3", "mesh.fsdp": "1"}), 8)
    check_devices(load("configs/mle.py:tiny"), 8)


def test_defaults_are_the_dataclasses(tmp_path):
    assert configs.defaults("mle").to_dict() == Config(stage="mle").to_dict()
