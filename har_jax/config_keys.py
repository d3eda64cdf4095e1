"""What each key of a configuration is: told once, by its line in `config.py`, to `--print-config`,
and to `docs/config.md` (`page`)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from har_jax.config import Config, may_change
from har_jax.settings import LocalPath, Range

_WIDTH = 100
_NOT_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}  # of YAML 1.1
_MAKE = """python -c 'from har_jax.config_keys import page; print(page(), end="")'"""


@dataclasses.dataclass(frozen=True)
class Key:
    """A setting: its dotted name, its default, what it may be, and what its comment says of it."""

    name: str
    default: Any
    allowed: str
    comment: str
    may_change: bool  # on resume


@dataclasses.dataclass(frozen=True)
class Section:
    name: str  # "" of the settings that stand in no section
    about: str
    keys: tuple[Key, ...]


def sections(cls: type = Config, name: str = "") -> Iterator[Section]:
    """All sections, in the order of `config.py`; each before those inside it."""
    hints, told = typing.get_type_hints(cls, include_extras=True), comments(cls)
    keys, inside = [], []
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], f"{name}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(hint):
            inside.append((hint, key))
            continue
        comment = told.get(field.name, "")
        keys.append(Key(key, field.default, allowed(hint), comment, may_change(key)))
    yield Section(name, _about(cls), tuple(keys))
    for hint, key in inside:
        yield from sections(typing.cast(type, hint), key)


def _about(cls: type) -> str:
    """The docstring of a section, where somebody wrote one."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split())


def comments(cls: type) -> dict[str, str]:
    """What stands beside each field of a dataclass, and in the lines above it; {} where the source
    is not at hand."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        lines = source.splitlines()
        said = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above, line = [], node.lineno - 1
            while line in said and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, said[line])
                line -= 1
            beside = said.get(node.end_lineno or node.lineno)
            found[node.target.id] = " ".join([*above, *([beside] if beside else [])])
    return found


def allowed(hint: Any) -> str:
    """What a setting of a type may be, in words."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is Annotated:
        kind, limit = typing.get_args(hint)
        if isinstance(limit, LocalPath):
            return "a path"
        number = "a whole number" if kind is int else "a number"
        return f"{number} {_range(limit)}".rstrip()
    kinds = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    return kinds[hint]


def _range(limit: Range) -> str:
    """A range without the bounds that are there for the machine's sake."""
    if limit.at_least == 1e-30:
        limit = dataclasses.replace(limit, at_least=None, above=0)
    low, high = (
        None if n is None or abs(n) >= 10_000 else n for n in (limit.at_least, limit.at_most)
    )
    text = str(dataclasses.replace(limit, at_least=low, at_most=high))
    return text.removesuffix("finite")


def as_yaml(config: Config) -> str:
    """A configuration as YAML, each setting with what it is and what it may be."""
    values = config.to_dict()
    of_names = {key.name: key for section in sections() for key in section.keys}
    lines = [
        "# Each is set by --config.KEY=VALUE, such as --config.optim.lr=1e-4.",
        "# In brackets: what it may be, and whether it may change when a run is resumed.",
    ]
    lines += _yaml(values, of_names, "")
    return "\n".join(lines) + "\n"


def _yaml(values: Mapping[str, Any], keys: Mapping[str, Key], name: str) -> Iterator[str]:
    indent = "  " * (name.count(".") + bool(name))
    for leaf, value in values.items():
        full = f"{name}.{leaf}".lstrip(".")
        if isinstance(value, Mapping):
            yield f"{indent}{leaf}:"
            yield from _yaml(value, keys, full)
            continue
        key = keys[full]
        told = f"{key.comment} [{key.allowed}{'; resume' * key.may_change}]"
        line = f"{indent}{leaf}: {scalar(value)}"
        if len(line) + len(told) + 4 <= _WIDTH:
            yield f"{line}  # {told}"
        else:
            yield from textwrap.wrap(
                told, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
            yield line


def scalar(value: Any) -> str:
    """A value as both YAML and `--config.KEY=VALUE` read it."""
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII)
    return value if plain and value.lower() not in _NOT_TEXT else json.dumps(value)


def page() -> str:
    """`docs/config.md`."""
    text = [
        "# Configuration",
        "",
        "A run is described by a frozen `har_jax.config.Config`. `--config=FILE[:PRESET]` names a",
        "Python file whose `get_config` returns one, or presets of the package (`mle:tiny`);",
        "`--config.KEY=VALUE` changes a setting, and `--print-config` shows all of them with what",
        "follows here. A run keeps its own in `config.json`; `python -m har_jax.train`",
        "`--workdir=RUN` continues it with those settings; *resume* marks what may change then.",
        "",
        "This page is written from `har_jax/config.py` and checked by the tests:",
        "",
        f"    {_MAKE} > docs/config.md",
    ]
    for section in sections():
        text += ["", f"## {section.name or 'The run'}", ""]
        text += [*textwrap.wrap(section.about, _WIDTH), ""] if section.about else []
        text += ["| key | default | may be | what it is | resume |", "|---|---|---|---|---|"]
        for key in section.keys:
            cells = [f"`{key.name}`", f"`{scalar(key.default)}`", key.allowed, key.comment]
            cells.append("yes" if key.may_change else "")
            text.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(text) + "\n"
