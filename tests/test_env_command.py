"""`har-jax env`: what a report of a fault should say, and nothing that should stay secret."""

import importlib.metadata
import json

import jax

from har_jax import env
from har_jax.__main__ import main
from har_jax.version import __version__


def test_what_is_there(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_TOKEN", "hf_secret")
    monkeypatch.setenv("XLA_DUMP_TO", "/a\nb")
    monkeypatch.setenv("HOME_OF_NOBODY", "here")
    assert env.main(["--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert found["har_jax"] == __version__
    assert found["packages"]["jax"] == jax.__version__
    assert found["packages"]["flax"] == importlib.metadata.version("flax")
    assert found["devices"]["count"].startswith(f"{len(jax.devices())} x cpu")
    assert found["environment"]["HF_HUB_TOKEN"] == "(set)" and "hf_secret" not in printed
    assert "\\n" in found["environment"]["XLA_DUMP_TO"] and "HOME_OF_NOBODY" not in printed
    assert env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"har_jax: {__version__}" in lines and "devices:" in lines


def test_a_driver_that_fails_is_told_of(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no driver\nat all")

    monkeypatch.setattr(jax, "devices", broken)
    assert env.main(["--json"]) == 0
    assert "no driver" in json.loads(capsys.readouterr().out)["devices"]["none"]


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"har_jax {__version__}\n"
