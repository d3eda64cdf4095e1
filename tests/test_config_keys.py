"""What each key of a configuration is: one source, `config.py`, and whoever tells it."""

import dataclasses
import random
import typing

import pytest
import yaml

from har_jax import config_file, train
from har_jax.config import RESUMABLE, Config, may_change
from har_jax.config_keys import allowed, as_yaml, comments, page, scalar, sections
from har_jax.errors import UserError, did_you_mean
from har_jax.presets import FAMILIES
from har_jax.settings import LocalPath, Range
from tests.conftest import ROOT

KEYS = [key for section in sections() for key in section.keys]


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_is_there_with_a_comment():
    assert {key.name: key.default for key in KEYS} == dict(flat(Config().to_dict()))
    assert [key.name for key in KEYS if not key.comment] == []
    told = {key.name: key for key in KEYS}
    assert told["batch_size"].comment == "images, over all devices"  # beside it
    assert told["data.words"].comment.startswith("What rewards and metrics count")  # above it
    assert told["model.dtype"].comment == "of activations"  # of the class that it comes from


def test_the_page_is_of_today():
    command = "python -c 'from har_jax.config_keys import page; print(page(), end=\"\")'"
    text = (ROOT / "docs/config.md").read_text()
    assert text == page(), f"{command} > docs/config.md"
    assert command in text


def drawn(rng, hint, default):
    """Some value that a setting may have."""
    if typing.get_origin(hint) is typing.Literal:
        return rng.choice(typing.get_args(hint))
    if hint is bool:
        return rng.random() < 0.5
    if typing.get_origin(hint) is typing.Annotated:
        kind, limit = typing.get_args(hint)
        if isinstance(limit, Range):
            values = [kind(rng.choice([0, 1, -1, 2, 7, 10**9, 0.5, 1e-7, 3.25])) for _ in range(99)]
            return next((v for v in values if limit.holds(v)), default)
        assert isinstance(limit, LocalPath)
    return rng.choice([default, "", "a: b", "'\"", "no", "1e5", "null", "- x", "# ü", "{}", " "])


def draw(rng, cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    made = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        nested = dataclasses.is_dataclass(hint)
        made[field.name] = draw(rng, hint) if nested else drawn(rng, hint, field.default)
    return cls(**made)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_printed_is_the_configuration(seed):
    """As YAML reads it, and as `--config.KEY=VALUE` does."""
    config = draw(random.Random(seed), Config)
    text = as_yaml(config)
    assert yaml.safe_load(text) == config.to_dict()
    assert max(map(len, text.splitlines())) <= 100
    for key, value in flat(config.to_dict()):
        if not isinstance(value, str):
            assert config_file._literal(scalar(value)) == value, key


@pytest.mark.parametrize("family", FAMILIES)
def test_print_config(family, capsys):
    assert train.main([f"--config={family}:tiny", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["stage"] == family
    assert "reward_timeout: 600.0" in printed and "; resume]" in printed


def test_a_source_that_is_not_at_hand():
    made = dataclasses.make_dataclass("Made", [("rank", int, 0)])
    assert comments(made) == {} and [k.name for s in sections(made) for k in s.keys] == ["rank"]


def test_ranges_in_words():
    hints = typing.get_type_hints(Config, include_extras=True)
    assert allowed(hints["steps"]) == "a whole number at least 1"
    assert allowed(hints["stage"]) == "mle, scst" and allowed(hints["init_from"]) == "a path"


def test_what_may_change_on_resume():
    assert may_change("eval.every") and may_change("steps") and not may_change("optim.lr")
    assert not may_change("evaluation") and not may_change("data")
    names = {key.name for key in KEYS} | {section.name for section in sections()}
    assert set(RESUMABLE) <= names


def test_only_what_is_near_is_suggested():
    """A word that shares no more than a few letters with the right one helps nobody."""
    for word, known in (("meteor", "metrics"), ("cat", "val"), ("foo", "lora"), ("beam", "best")):
        assert did_you_mean(word, [known]) == "", (word, known)
    for word, known in (("mel", "mle"), ("Beam", "beam"), ("tset", "test"), ("gredy", "greedy")):
        assert did_you_mean(word, ["other", known]) == f" (did you mean {known!r}?)"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.foo", None),  # `model.` stands before all of them
        ("model.remt", "config.model.remat"),
        ("optim.shedule", "config.optim.schedule"),
        ("scst.lr", "config.optim.lr"),  # the right name in the wrong section
        ("guards.zzz", None),
        ("bs", "config.batch_size"),
    ],
)
def test_keys_that_are_not_there(key, near):
    with pytest.raises(UserError, match="unknown key") as told:
        config_file.load("mle:tiny", {key: "1"})
    found = f"(did you mean {near!r}?)" if near else "did you mean"
    assert (found in str(told.value)) == bool(near)
    assert len(str(told.value)) < 500
