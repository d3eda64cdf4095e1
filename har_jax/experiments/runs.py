"""What experiments are made of: worlds, and commands that are run as a reader would type them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from har_jax import command_line
from har_jax.foreign import read_json


@dataclasses.dataclass(frozen=True)
class World:
    """A dataset and the miniature models trained on it."""

    name: str
    data: str
    models: str
    arguments: tuple[str, ...] = ()  # of `prepare scenes`


SCENES = World("scenes", "data/scenes", "models/scenes")
MODELS = ("clip-l", "clip-b", "mistral")
"""The miniature models that training needs; ZeroCap's language model is another."""


def run_command(name: str, *args: str, dry_run: bool = False) -> None:
    """Prints one command, such as "train" or "prepare features", and runs it in this process; stops
    at the first that fails."""
    name, *kind = name.split()
    args = (*kind, *args)
    print(f"\n$ python -m har_jax.{name} {shlex.join(args)}", flush=True)
    if not dry_run:
        code = command_line.run(name, args)
        if code:
            raise SystemExit(code)


def prepare(world: World, *, models: Sequence[str] = MODELS, dry_run: bool = False) -> None:
    """The dataset and the miniature models of a world, if they are not there."""
    if not os.path.exists(f"{world.data}/dataset.json"):
        out = f"--out={world.data}"
        run_command("prepare", "scenes", out, *world.arguments, dry_run=dry_run)
    if not all(os.path.exists(f"{world.models}/{name}/config.json") for name in models):
        data, out = f"--data={world.data}", f"--out={world.models}"
        run_command("prepare", "foundation", data, out, dry_run=dry_run)


def read_scores(directory: pathlib.Path) -> dict[str, Any]:
    """`scores.json` of an evaluation."""
    return read_json(directory / "scores.json", "the scores of an evaluation")
