"""Settings as frozen dataclasses: numbers that say what they may be, and the way from plain values.

`build` makes a dataclass of settings from what a file, a command line or `config.json` gives, and
refuses unknown keys, wrong types and numbers out of their range.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from har_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: finite ones within these bounds, and those in `also`."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: tuple[int, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether a value is allowed."""
        return value in self.also or (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [("at least", self.at_least), ("above", self.above)]
        bounds += [("at most", self.at_most), ("below", self.below)]
        text = " and ".join(f"{word} {n}" for word, n in bounds if n is not None)
        return " or ".join([*map(str, self.also), text or "finite"])


Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
Decay = Annotated[float, Range(at_least=0, below=1)]  # of a running average, each step
MeshSize = Annotated[int, Range(at_least=1, also=(-1,))]  # -1: the devices that are left


def place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """(section, leaf) of a dotted key, such that `section[leaf]` is the setting.

    Raises:
      UserError: there is no such key, or it names a section.
    """
    names = key.split(".")
    section, found = values, values
    for depth, name in enumerate(names, 1):
        if not isinstance(found, dict) or name not in found:
            raise _unknown_key(".".join(("config", *names[:depth])), _all_keys(values))
        section, found = found, found[name]
    if isinstance(found, Mapping):
        keys = ", ".join(f"config.{key}.{k}" for k in found)
        raise UserError(f"config.{key} names a section; set one of its keys: {keys}")
    return section, names[-1]


def _all_keys(values: Mapping[str, Any], prefix: str = "config") -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(f"{prefix}.{key}")
        if isinstance(value, Mapping):
            keys += _all_keys(value, f"{prefix}.{key}")
    return keys


_ALIASES = {
    "learning_rate": "config.optim.lr",
    "bs": "config.batch_size",
    "num_steps": "config.steps",
    "max_length": "config.data.max_tokens",
    "dataset": "config.data.dir",
}
"""What people coming from elsewhere type."""


def _unknown_key(key: str, known: Sequence[str]) -> UserError:
    parent, _, leaf = key.rpartition(".")
    elsewhere = {k.rpartition(".")[2]: k for k in known}  # the right name in the wrong section
    near = _ALIASES.get(leaf, elsewhere.get(leaf))
    hint = f" (did you mean {near!r}?)" if near else did_you_mean(key, known)
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    return UserError(f"unknown key {key}{hint}; {parent} has {', '.join(siblings) or 'no keys'}")


_GONE = {"config.model.fused": False}
"""Settings of older versions, in their runs' `config.json`: the value that changes nothing."""


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass of settings from plain values; missing ones are its defaults.

    Args:
      where: what its keys are called in errors, such as "config.optim".

    Raises:
      UserError: a key is unknown, a value not of its field's type or out of its range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls, include_extras=True)
    made = {}
    for name, value in values.items():
        key = f"{where}.{name}"
        if name in fields:
            made[name] = _convert(hints[name], value, key)
        elif key not in _GONE:
            raise _unknown_key(key, [f"{where}.{name}" for name in fields])
        elif value != _GONE[key]:
            raise UserError(
                f"{key} is {value!r}: this version has no such setting any more, it does as with "
                f"{_GONE[key]!r}; use the version of har_jax that the run was made with"
            )
    return cls(**made)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is Annotated:
        kind, allowed = typing.get_args(hint)
        number = _convert(kind, value, where)
        if not allowed.holds(number):
            raise UserError(f"{where} is {number}; it must be {allowed}")
        return number
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it must be a section with keys of its own")
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            hint_text = did_you_mean(str(value), allowed)
            raise UserError(f"{where} is {value!r}{hint_text}; allowed: {', '.join(allowed)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not hint:
        kind = type(value).__name__
        raise UserError(f"{where} is {value!r} ({kind}); it must be {hint.__name__}")
    return value
