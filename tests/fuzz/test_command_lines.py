"""Command lines of all commands: words of their own parsers, and others. Parsed and checked as far
as no model is loaded."""

from __future__ import annotations

import argparse
import importlib
import pathlib
import random
from collections.abc import Iterator

import pytest

from har_jax import command_line
from har_jax.command_line import COMMANDS, Parser
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt, command

HEAVY = ("har_jax.sessions.run.train", "har_jax.loading.captioner.load_captioner")
"""What would load models; a command line that gets there is right."""


class Seen(Exception):
    """Carries a parser out of a command."""


def parser_of(name: str) -> argparse.ArgumentParser:
    def stop(self, argv=None, namespace=None):
        raise Seen(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_known_args", stop)
        try:
            module = importlib.import_module(f"har_jax.{name}")
            if not hasattr(module, "main"):
                module = importlib.import_module(f"har_jax.{name}.__main__")
            module.main.__wrapped__([])
        except Seen as seen:
            return seen.args[0]
    raise AssertionError(name)


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from ((f"{name} {where}".strip(), a) for where, a in options_of(inner))
        elif not isinstance(action, argparse._HelpAction):
            yield "", action


PARSERS = {name: list(options_of(parser_of(name))) for name in COMMANDS}


def value(rng: random.Random, action: argparse.Action, folder: pathlib.Path) -> str:
    kind = rng.randrange(8)
    if action.choices and kind < 5:
        return str(rng.choice(list(action.choices)))
    if kind < 3:
        return hostile.text(rng).replace("\0", "")  # the system passes no NUL on
    if kind == 3:
        return rng.choice(
            ["9" * 5000, "1e999", "nan", "-inf", "0", "-1", "1.5", "2147483648", "1e-320"]
        )
    if kind == 4:
        return str(rng.randrange(-2, 5))
    if kind == 5:
        return str(folder / rng.choice(["a.jpg", "none", "d"]))
    return rng.choice(
        ["train", "scst:tiny", "mle:tiny", "1:3", "0/2", "²/³", "best", "CIDEr,Bleu", "v5e:2x2"]
    )


def line(rng: random.Random, name: str, folder: pathlib.Path) -> list[str]:
    own = PARSERS[name]
    groups = sorted({where for where, _ in own})
    group = rng.choice(groups)
    words = group.split()
    for where, action in own:
        needed = where == group and (action.required or not action.option_strings)
        if not (needed and rng.random() < 0.9) and rng.random() > 0.12:
            continue
        if where != group and rng.random() > 0.05:
            continue
        flag = action.option_strings[-1] if action.option_strings else None
        if action.nargs == 0:
            words.append(str(flag))
        elif flag is None:
            words.append(value(rng, action, folder))
        else:
            text = value(rng, action, folder)
            words += [f"{flag}={text}"] if rng.random() < 0.8 else [flag, text]
    if rng.random() < 0.2:
        words.insert(
            rng.randrange(len(words) + 1),
            rng.choice(
                [
                    "--config.steps=3",
                    "--config.",
                    "--config.optim.lr",
                    "--",
                    "-",
                    "--no-such=1",
                    "--help=1",
                    hostile.text(rng).replace("\0", ""),
                ]
            ),
        )
    return words


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    (folder / "a.jpg").write_bytes(b"not an image")
    (folder / "d").mkdir()
    name = rng.choice(list(COMMANDS))
    argv = line(rng, name, folder)
    parser = name

    def call() -> None:
        command(lambda words: command_line.run(parser, words), argv)

    return Case(call)


@pytest.fixture
def nothing_heavy(monkeypatch, tmp_path):
    """Whoever gets so far has been told that the command line is right."""

    def reached(*_, **__):
        raise SystemExit(0)

    import har_jax.data.builder
    import har_jax.evaluation.run
    import har_jax.experiments.sweep
    import har_jax.loading.captioner
    import har_jax.loading.export
    import har_jax.miniature.models
    import har_jax.preflight
    import har_jax.sessions.run
    import har_jax.zerocap.run

    monkeypatch.setattr(har_jax.sessions.run, "train", reached)
    # Each that has the name: one imported later would keep what it stands for now.
    for module in (har_jax.loading.captioner, har_jax.loading.export, har_jax.evaluation.run):
        monkeypatch.setattr(module, "load_captioner", reached)
    monkeypatch.setattr(har_jax.miniature.models, "build", reached)
    monkeypatch.setattr(har_jax.data.builder, "write", reached)
    monkeypatch.setattr(har_jax.preflight, "run", reached)
    monkeypatch.setattr(har_jax.zerocap.run, "load", reached)
    monkeypatch.setattr(har_jax.experiments.sweep.Sweep, "make", reached)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_command_lines(nothing_heavy, tmp_path, record_property):
    attempt("command lines", 2500, draw, tmp_path, record_property)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_says_what_it_may_be(name):
    """Numbers come from `settings`' ranges, what names a place from its `Path`; whatever else takes
    a value has choices, or is known as a text here."""
    texts = {
        "config",
        "split",
        "step",
        "profile",
        "topology",
        "programs",
        "metrics",
        "part",
        "name",
        "only",
        "prompt",
        "push",
    }
    # Families are looked up after parsing, for their table imports JAX.
    texts |= {"image_column", "caption_column", "words", "encoder", "decoder"}
    texts |= {"license", "push"}  # identifiers of the hub's
    for where, action in PARSERS[name]:
        told = f"{name} {where} {action.dest}"
        if action.nargs == 0 or action.choices or action.dest.startswith("how."):
            continue
        if action.type is None:
            assert action.dest in texts, f"{told} has no type"
        else:
            assert hasattr(action.type, "hint"), f"{told}: {action.type} has no range"
        if action.metavar and any(word in str(action.metavar) for word in ("DIR", "RUN", "IMAGE")):
            assert action.type is command_line.path, told
