"""ZeroCap's settings on the command line: a flag for each, typed as the setting is."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from har_jax.errors import UserError
from har_jax.zerocap.settings import Guidance


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declares a flag for each setting, for `guidance`."""
    group = parser.add_argument_group("settings, instead of the preset's")
    for field, kind in _settings():
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"how.{field.name}",
            metavar="|".join(kind) if isinstance(kind, tuple) else kind.__name__.upper(),
            help=f"{field.metadata['help']} (repo: {field.default})",
        )


def guidance(args: argparse.Namespace) -> Guidance:
    """The preset with what the command line changes.

    Raises:
      UserError: a value is not of its setting's type or out of its range.
    """
    changes: dict[str, Any] = {}
    for field, kind in _settings():
        text = getattr(args, f"how.{field.name}")
        if text is not None:
            flag = f"--{field.name.replace('_', '-')}"
            changes[field.name] = text if isinstance(kind, tuple) else _value(text, kind, flag)
    return Guidance.preset(args.preset, changes)


def _settings() -> list[tuple[dataclasses.Field, type | tuple[str, ...]]]:
    """The settings, each with its type, ranges aside, or the words that are allowed."""
    hints = typing.get_type_hints(Guidance)
    kinds = {name: typing.get_args(hint) or hint for name, hint in hints.items()}
    return [(field, kinds[field.name]) for field in dataclasses.fields(Guidance)]


def _value(text: str, kind: type, flag: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{flag}={text}: it must be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{flag}={text}: it must be {what}") from None
