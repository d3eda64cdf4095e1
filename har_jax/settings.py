"""Settings that say what they may be: numbers by their range, paths by what can name a file here.

`build` makes a frozen dataclass of settings from what a file, a command line or `config.json`
gives, and refuses unknown keys, wrong types, and values that are not allowed. `word` does the same
for one argument of a command line, from the same declarations.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import math
import numbers
import operator
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from har_jax.errors import UserError, did_you_mean

log = logging.getLogger(__name__)
T = TypeVar("T")


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
            abs(value) < _TOO_LARGE
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

    def checked(self, value: float, where: str) -> float:
        """The value; `where` it stands is for errors.

        Raises:
          UserError: it is not allowed.
        """
        if not self.holds(value):
            raise UserError(f"{where} is {_shown(value)}; it must be {self}")
        return value


@dataclasses.dataclass(frozen=True)
class LocalPath:
    """What can name a file or a directory of this machine, or a model of the hub."""

    def checked(self, text: str, where: str) -> str:
        """The path, with `~` as the home directory; `where` it stands is for errors.

        Raises:
          UserError: it names a place of another kind (`gs://bucket`), somebody who is not there, or
            cannot be a name at all.
        """
        given = f"{where} is {_shown(text)}"
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
        if scheme:
            raise UserError(
                f"{given}, but {scheme[1]}:// is not read; copy it to a disk of this machine, or "
                "mount it, and give that path"
            )
        path = os.path.expanduser(text)
        if path == text and re.match(r"~[^/]*(/|$)", text) and not os.path.lexists(path):
            raise UserError(f"{given}, but there is no such home directory; write it out")
        if "\0" in path or _broken(path):
            raise UserError(f"{given}, which can be no file's name in UTF-8; rename the file")
        longest = max(len(part.encode()) for part in path.split("/"))
        if len(path.encode()) > 4000 or longest > 255:
            raise UserError(
                f"{given}, which is too long: a path has at most 4000 bytes, a name in it 255"
            )
        return path


_TOO_LARGE = 1e30
"""Beyond it float32, as devices compute, has little left, and no setting means anything."""
_INT32 = 2**31 - 1

Count = Annotated[int, Range(at_least=1, at_most=_INT32)]
CountOrZero = Annotated[int, Range(at_least=0, at_most=_INT32)]
Tokens = Annotated[int, Range(at_least=1, at_most=1 << 20)]
Beams = Annotated[int, Range(at_least=1, at_most=1000)]
LengthPenalty = Annotated[float, Range(at_least=-10, at_most=10)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Layer = Annotated[int, Range(at_least=-10_000, at_most=10_000)]  # negative: counted from the end
Positive = Annotated[float, Range(at_least=1e-30)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
Part = Annotated[float, Range(at_least=0, at_most=1)]  # of a whole
Decay = Annotated[float, Range(at_least=0, below=1)]  # of a running average, each step
MeshSize = Annotated[int, Range(at_least=1, at_most=_INT32, also=(-1,))]  # -1: what is left
Path = Annotated[str, LocalPath()]


RENAMED = {"config.model.clip": "encoder"}
"""Settings that had another name once, under which they are still read."""


@functools.cache
def tell_renamed(old: str, new: str) -> None:
    """Says so once, to whoever still writes the old name."""
    log.warning("%s is now called %s; the old name is still read", old, new)


def accepts(**renamed: str) -> Callable[[type[T]], type[T]]:
    """Makes a dataclass take, and have, a field by the name that it had once: {old: new}."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = cls.__init__

        @functools.wraps(made)
        def init(self: Any, *args: Any, **values: Any) -> None:
            for old, new in renamed.items():
                if old in values:
                    tell_renamed(f"{cls.__name__}({old}=)", f"{new}=")
                    values[new] = values.pop(old)
            made(self, *args, **values)

        cls.__init__ = init
        for old, new in renamed.items():
            setattr(cls, old, property(operator.attrgetter(new)))
        return cls

    return decorate


def tell_old_names(values: Any, where: str = "config") -> None:
    """`tell_renamed` of the keys of settings that somebody has written just now."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        key = f"{where}.{name}"
        if key in RENAMED:
            tell_renamed(key, f"{where}.{RENAMED[key]}")
        tell_old_names(value, key)


def place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """(section, leaf) of a dotted key, such that `section[leaf]` is the setting.

    Raises:
      UserError: there is no such key, or it names a section.
    """
    if new := RENAMED.get(f"config.{key}"):
        parent = key.rpartition(".")[0]
        tell_renamed(f"config.{key}", f"config.{parent}.{new}")
        key = f"{parent}.{new}"
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


def word(hint: Any) -> Callable[[str], Any]:
    """`type=` of an argument: a word of the command line as `Count`, `Share`, `Path`, and so on."""
    kind, allowed = typing.get_args(hint)

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            what = {int: "a whole number", float: "a number"}[kind]
            raise argparse.ArgumentTypeError(f"it is {_shown(text)}; it must be {what}") from None
        if text == "":
            raise argparse.ArgumentTypeError("it is empty; give a path, or leave it out")
        try:
            return allowed.checked(value, "it")
        except UserError as error:  # argparse would replace the text of a ValueError
            raise argparse.ArgumentTypeError(str(error)) from None

    read.hint = hint  # type: ignore[attr-defined]
    return read


def checked_number(name: str, value: Any, hint: Any) -> Any:
    """A keyword argument of a caller's that is a number, as `Count`, `Share` and so on say.

    Raises:
      UserError: it is no such number.
    """
    kind, allowed = typing.get_args(hint)
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {_shown(value)}; it must be {what}")
    return allowed.checked(value, name)


def _shown(value: Any) -> str:
    """A value of somebody else's in an error."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= 120 else f"{text[:116]} ..."


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
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    elsewhere = {k.rpartition(".")[2]: k for k in known}  # the right name in the wrong section
    # Last names are compared: what stands before them is long, and makes all of a section alike.
    own = did_you_mean(leaf, [k.rpartition(".")[2] for k in siblings])
    near = _ALIASES.get(leaf, elsewhere.get(leaf))
    hint = f" (did you mean {near!r}?)" if near else own.replace("mean '", f"mean '{parent}.")
    key = key if len(key) <= 120 else f"{key[:116]} ..."
    leaves = ", ".join(k.rpartition(".")[2] for k in siblings)
    return UserError(f"unknown key {key}{hint}; {parent} has {leaves or 'no keys'}")


_GONE = {"config.model.fused": False}
"""Settings of older versions, in their runs' `config.json`: the value that changes nothing."""


def build(cls: type, values: Any, where: str) -> Any:
    """A dataclass of settings from plain values; missing ones are its defaults.

    Args:
      values: {name: value}; anything else is refused.
      where: what its keys are called in errors, such as "config.optim".

    Raises:
      UserError: a key is unknown, a value not of its field's type or not allowed.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {_shown(values)}; it must be a section with keys of its own")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls, include_extras=True)
    made = {}
    for name, value in values.items():
        key = f"{where}.{name}"
        if key in RENAMED and name not in fields:
            made.setdefault(RENAMED[key], _convert(hints[RENAMED[key]], value, key))
        elif name in fields:
            made[name] = _convert(hints[name], value, key)
        elif key not in _GONE:
            raise _unknown_key(key, [f"{where}.{name}" for name in fields])
        elif value != _GONE[key]:
            raise UserError(
                f"{key} is {_shown(value)}: this version has no such setting any more, it does as "
                f"with {_GONE[key]!r}; use the version of har_jax that the run was made with"
            )
    return cls(**made)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is Annotated:
        kind, allowed = typing.get_args(hint)
        return allowed.checked(_convert(kind, value, where), where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            near = did_you_mean(value, allowed) if isinstance(value, str) else ""
            raise UserError(f"{where} is {_shown(value)}{near}; allowed: {', '.join(allowed)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _TOO_LARGE else math.inf
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not hint:
        kind = type(value).__name__
        raise UserError(f"{where} is {_shown(value)} ({kind}); it must be {hint.__name__}")
    if isinstance(value, str) and ("\0" in value or _broken(value)):
        raise UserError(f"{where} is {_shown(value)}, which is no text that a file could hold")
    return value


def _broken(text: str) -> bool:
    """Whether a text holds half a character (an unpaired surrogate)."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
