"""Configurations: what is accepted, and what a mistake says."""

import dataclasses
import json
import math
import pathlib
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_jax.config import Config, ModelConfig, Range, check_devices
from har_jax.config_file import load
from har_jax.errors import UserError
from har_jax.presets import scst
from har_jax.settings import tell_renamed
from har_jax.training.run_dir import read_run

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
    assert load(f"{stage}:{preset}") == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_of_the_package_are_found_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load("scst:tiny", {"steps": "17"}).steps == 17
    (tmp_path / "scst").write_text("a file of that name is what is meant")
    with pytest.raises(UserError, match="not a Python file"):
        load("scst:tiny")


RETURNED = {
    "Config": "from har_jax.presets import mle\n"
    "def get_config(preset='tiny'):\n    return mle.get_config(preset).changed(steps=77)\n",
    "a dict": "def get_config():\n    return {'steps': 77, 'optim': {'warmup_steps': 25}, 'data': "
    "{'dir': 'd'}, 'model': {'encoder': 'c', 'lm': 'l'}}\n",
    "a ConfigDict": "class ConfigDict(dict):\n    def to_dict(self): return dict(self)\n"
    "def get_config():\n    return ConfigDict(steps=77, data={'dir': 'd'}, "
    "model={'encoder': 'c', 'lm': 'l', 'fused': False})\n",
}


@pytest.mark.parametrize("kind", RETURNED)
def test_what_a_config_file_may_return(tmp_path, kind):
    (tmp_path / "mine.py").write_text(RETURNED[kind])
    config = load(f"{tmp_path}/mine.py", {"data.max_tokens": "0"})
    assert config.steps == 77 and config.data.max_tokens == 0


def test_changed_settings():
    config = load("mle:tiny")
    other = config.changed(steps=600, **{"optim.lr": 1, "model.lora.rank": 4})
    assert (other.steps, other.optim.lr, other.model.lora.rank) == (600, 1.0, 4)
    assert config == load("mle:tiny"), "the one that it was made from is as it was"
    assert other.changed(**{"steps": config.steps, "optim.lr": 5e-3}) != config
    with pytest.raises(UserError, match=r"did you mean 'config.optim.lr'\?"):
        config.changed(**{"optim.lrr": 1})
    with pytest.raises(UserError, match=r"config.optim.b1 is 1.0; it must be at least 0 and below"):
        config.changed(**{"optim.b1": 1.0})


def test_settings_of_older_versions():
    old = load("mle:tiny").to_dict()
    old["model"]["fused"] = False
    assert Config.from_dict(old) == load("mle:tiny")
    old["model"]["fused"] = True
    with pytest.raises(UserError, match=r"config.model.fused is True: this version has no such"):
        Config.from_dict(old)
    with pytest.raises(UserError, match=r"unknown key config.model.fused"):
        load("mle:tiny", {"model.fused": "false"})


def test_stages_agree_on_the_model():
    for preset in ("tiny", "coco"):
        mle, scst = (load(f"configs/{stage}.py:{preset}") for stage in ("mle", "scst"))
        assert mle.model == scst.model and mle.data == scst.data


def test_overrides_keep_their_types():
    config = load(
        "configs/scst.py:tiny",
        {"optim.lr": "1e-5", "steps": "17", "init_from": "runs/1", "data.cache_images": "false"},
    )
    assert (config.optim.lr, config.steps, config.init_from) == (1e-5, 17, "runs/1")
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
        ({"steps": "0"}, "config.steps is 0; it must be at least 1"),
        ({"steps": "9"}, "config.optim.warmup_steps=10 is longer than the run .config.steps=9."),
        ({"data.max_tokens": "1"}, "config.data.max_tokens is 1; it must be 0 or at least 2"),
        ({"optim.lr": "nan"}, "config.optim.lr"),
        ({"optim.lr": "-1"}, "config.optim.lr is -1.0"),
        ({"data.dir": ""}, "config.data.dir is not set"),
        ({"init_from": ""}, "config.init_from is not set"),
        ({"scst.baseline": "leave_one_out", "scst.samples": "1"}, "needs config.scst.samples >= 2"),
        ({"scst.baseline": "both", "scst.samples": "1"}, "'both' needs config.scst.samples"),
        ({"steps.x": "1"}, "unknown key config.steps.x"),
        ({"guards.length": "roll_back"}, r"did you mean 'rollback'\?\); allowed: off, warn, stop"),
        ({"guards.kl_limit": "0"}, "config.guards.kl_limit is 0.0; it must be at least 1e-30"),
        ({"guards.rollback_lr_factor": "1.5"}, "must be above 0 and at most 1"),
        ({"guards.max_rollbacks": "-1"}, "must be at least 0"),
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


def test_what_a_run_starts_from_may_say_its_models():
    bare = {"model.encoder": "", "model.lm": ""}
    assert load("configs/mle.py:tiny", {"init_from": "models/llava", **bare}).model.lm == ""
    with pytest.raises(UserError, match=r"config.model.lm is not set"):
        load("configs/mle.py:tiny", bare)


def test_a_batch_that_the_mesh_cannot_divide():
    config = load("mle:tiny", {"batch_size": "12"})
    with pytest.raises(UserError, match=r"config.batch_size=12 cannot be divided over 8 devices"):
        check_devices(config, 8)
    with pytest.raises(UserError, match="does not fit 8 device"):
        check_devices(load("mle:tiny", {"mesh.data": "3", "mesh.fsdp": "1"}), 8)
    # Only `data` and `fsdp` split a batch; that of evaluation is rounded up where it is used.
    check_devices(load("mle:tiny", {"batch_size": "12", "mesh.tensor": "2"}), 8)
    check_devices(load("mle:tiny", {"eval.batch_size": "50"}), 8)


WORDS = {
    *(
        "data.train_split",
        "trackers",
        "data.val_split",
        "data.words",
        "model.prompt",
        "model.lora.targets",
    ),
    *("scst.objective", "scst.reward"),
}
"""Texts that name no file. A new text is one of these, or a `settings.Path`."""


def numbers(cls=Config, prefix=""):
    """(key, type, range) of every int and float of the configuration, and of every path."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is typing.Annotated:
            yield f"{prefix}{name}", *typing.get_args(hint)
        elif hint is str:
            assert f"{prefix}{name}" in WORDS, "is it a path?"
        else:
            assert hint not in (int, float), f"{prefix}{name} does not say what it may be"


NUMBERS = {key: (kind, allowed) for key, kind, allowed in numbers() if kind is not str}
PATHS = {key for key, kind, _ in numbers() if kind is str}


@settings(deadline=None, max_examples=20)
@given(st.data())
@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_is_held_to_its_range(key, data):
    kind, allowed = NUMBERS[key]
    below = allowed.at_least if allowed.at_least is not None else allowed.above
    above = allowed.at_most if allowed.at_most is not None else allowed.below
    limits = {"allow_nan": False, "allow_infinity": False} if kind is float else {}
    drawn = {int: st.integers, float: st.floats}[kind]
    wrong = [st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, 10**5000])]
    if below is not None:
        wrong.append(drawn(max_value=kind(below), **limits))
    if above is not None:
        wrong.append(drawn(min_value=kind(above), **limits))
    value = data.draw(st.one_of(wrong).filter(lambda x: not allowed.holds(x)))
    with pytest.raises(UserError) as caught:
        scst.TINY.changed(**{key: value})
    text = str(caught.value)
    assert f"config.{key} is " in text and "must be" in text and "\n" not in text


def test_the_defaults_are_in_range():
    config = Config().to_dict()
    for key, (_, allowed) in NUMBERS.items():
        value = config
        for part in key.split("."):
            value = value[part]
        assert allowed.holds(value), key
    assert len(NUMBERS) > 35 and Range().holds(-2) and not Range().holds(math.nan)


@pytest.mark.parametrize("key", sorted(PATHS))
def test_every_path_is_one_of_this_machine(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        scst.TINY.changed(**{key: "~/data"}).to_dict()
        == scst.TINY.changed(**{key: "/home/me/data"}).to_dict()
    )
    for wrong, message in {
        "gs://bucket/a": "gs:// is not read; copy it",
        "hf://models/a": "hf:// is not read",
        "~nobody-of-this-name/a": "no such home directory",
        "a\0b": "which is no text",
        "\ud800": "no",
        "a" * 300: "too long",
        "a/" * 3000: "too long",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            scst.TINY.changed(**{key: wrong})
        assert "\n" not in str(caught.value) and f"config.{key} is" in str(caught.value)


# ------------------------------------------------------------------ a setting that was renamed


@pytest.fixture
def told(caplog):
    """The lines that say so; once in a process, so each test begins anew."""
    tell_renamed.cache_clear()
    yield lambda: [r.getMessage() for r in caplog.records if "is now called" in r.getMessage()]
    tell_renamed.cache_clear()


def test_the_old_name_of_the_encoder_is_read_on_the_command_line(told):
    config = load("mle:tiny", {"model.clip": "models/mine"})
    assert config.model.encoder == config.model.clip == "models/mine"
    assert told() == [
        "config.model.clip is now called config.model.encoder; the old name is still read"
    ]
    assert load("mle:tiny", {"model.encoder": "models/other"}).model.encoder == "models/other"
    assert len(told()) == 1


@pytest.mark.parametrize("kind", ["a dict", "a ConfigDict", "Config"])
def test_the_old_name_of_the_encoder_is_read_in_files(tmp_path, kind, told):
    text = RETURNED[kind].replace("'encoder'", "'clip'")
    if kind == "Config":
        text = (
            "from har_jax.config import Config, DataConfig, ModelConfig\n"
            "def get_config():\n    return Config(steps=77, data=DataConfig(dir='d'), "
            "model=ModelConfig(clip='c', lm='l'))\n"
        )
    (tmp_path / "mine.py").write_text(text.replace("'warmup_steps': 25", "'warmup_steps': 1"))
    config = load(f"{tmp_path}/mine.py")
    assert config.model.encoder == "c" and "clip" not in config.to_dict()["model"]
    assert len(told()) == 1


def test_the_old_name_of_the_encoder_is_read_of_runs_without_a_word(tmp_path, told):
    config = load("mle:tiny")
    values = config.to_dict()
    values["model"]["clip"] = values["model"].pop("encoder")
    del values["model"]["vision_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    base = {"clip": {"fingerprint": "sha256:1"}, "lm": {"fingerprint": "sha256:2"}}
    (tmp_path / "run.json").write_text(json.dumps({"base": base}))
    then, info = read_run(tmp_path)
    assert then == config
    assert info["base"] == {"encoder": base["clip"], "lm": base["lm"]}
    assert told() == []


def test_settings_may_be_replaced_by_either_name(told):
    model = ModelConfig(encoder="a", lm="l")
    assert dataclasses.replace(model, prompt="x").encoder == "a"
    assert dataclasses.replace(model, encoder="b").clip == "b"
    assert told() == []
    assert dataclasses.replace(model, clip="c").encoder == "c"
    assert Config(model=model).changed(**{"model.clip": "d"}).model.encoder == "d"
    with pytest.raises(UserError, match=r"unknown key config\.model\.clips"):
        load("mle:tiny", {"model.clips": "x"})
