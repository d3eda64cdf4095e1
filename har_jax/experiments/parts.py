"""Sweeps as data: a part is one command with its settings, and is known by them.

A part's digest is a hash of what decides its result: the command, its settings, the content of the
datasets and weights that it reads, and the digests of the parts that it starts from. Paths are not
in it, nor is the order of arguments; of a configuration only what differs from the defaults, so
that a setting which a later version adds leaves finished work finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flax.traverse_util import flatten_dict

from har_jax import config_file
from har_jax.config import Config
from har_jax.files import dumps


class _Here:
    """Stands for the directory of the part itself."""


HERE: Final = _Here()
_OF_CONFIG = "--config."
_INPUTS = (
    *("data.dir", "data.features", "model.encoder", "model.lm"),
    *("eval.clip_score", "scst.reward_clip"),
)
"""Keys of a configuration that name directories."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A dataset or weights, which are no part of a sweep; known by their content."""

    path: str


@dataclasses.dataclass(frozen=True)
class Part:
    """One command that leaves one directory.

    Attributes:
      name: of the directory, as a reader would call it: "mle-0".
      command: of `har_jax.command_line.COMMANDS`, with its kind where it has kinds: "prepare
        features".
      arguments: {flag: value} in the order in which they are typed. `HERE` stands for this part's
        directory, a `Part` for its own.
      result: a file that is there when the part is whole.
      inside: another part, in whose directory this one's is.
    """

    name: str
    command: str
    arguments: Mapping[str, str | int | float | Input | Part | _Here]
    result: str
    inside: Part | None = None

    @property
    def parents(self) -> dict[str, Part]:
        """{flag: the part that its value is}."""
        return {flag: value for flag, value in self.arguments.items() if isinstance(value, Part)}

    def words(self, place: Callable[[Part], pathlib.Path]) -> list[str]:
        """The arguments as they are typed.

        Args:
          place: the directory of a part.
        """
        texts = {
            flag: place(self) if value is HERE
            else place(value) if isinstance(value, Part)
            else value.path if isinstance(value, Input)
            else value
            for flag, value in self.arguments.items()
        }  # fmt: skip
        return [f"{flag}={text}" for flag, text in texts.items()]

    def identity(self, content: Callable[[str], str]) -> dict[str, Any]:
        """What the digest is made of.

        Args:
          content: what is in a directory, as `content_of` says it.
        """
        plain = {f: v for f, v in self.arguments.items() if isinstance(v, str | int | float)}
        inputs = {f: v.path for f, v in self.arguments.items() if isinstance(v, Input)}
        if self.command == "train":
            plain, inputs = self._configured()
        return {
            "command": self.command,
            "settings": plain,
            "inputs": {name: content(path) for name, path in inputs.items()},
            "parents": {flag: part.digest(content) for flag, part in self.parents.items()},
        }

    def digest(self, content: Callable[[str], str]) -> str:
        text = dumps(dict(_sorted(self.identity(content))))
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self) -> None:
        """Raises `UserError` where a configuration, of this part or of one that it starts from,
        contradicts itself: before the first of them is made."""
        self.digest(str)

    def _configured(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(settings that are not the defaults, directories) of a training's configuration."""
        # A configuration is checked as a whole: what is to be a part's directory needs some text.
        given = {
            flag.removeprefix(_OF_CONFIG): "a part" if isinstance(value, Part) else str(value)
            for flag, value in self.arguments.items()
            if flag.startswith(_OF_CONFIG)
        }
        config = config_file.load(str(self.arguments["--config"]), given)
        ours, default = (flatten_dict(c.to_dict(), sep=".") for c in (config, Config()))
        changed = {key: value for key, value in ours.items() if value != default[key]}
        for flag in self.parents:
            del changed[flag.removeprefix(_OF_CONFIG)]
        inputs = {key: str(changed.pop(key)) for key in _INPUTS if key in changed}
        return changed, inputs


def content_of(path: str) -> str:
    """What a directory holds: a hash of a dataset's captions, which have those of its images in
    them; or of weights; or that nothing is there yet."""
    from har_jax.interchange.hf_dir import weights_fingerprint

    place = pathlib.Path(path)
    if captions := sorted(place.glob("captions.*.json")):
        digest = hashlib.sha256()
        for file in captions:
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return f"sha256:{digest.hexdigest()}"
    if (place / "config.json").is_file():
        return weights_fingerprint(place)
    return f"not there: {path}"


def _sorted(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in sorted(values):
        value = values[key]
        yield key, dict(_sorted(value)) if isinstance(value, Mapping) else value
