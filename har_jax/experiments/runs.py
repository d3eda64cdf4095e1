"""What experiments are made of: commands that are run as a reader would type them.

What exists already is not made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from har_jax import command_line


@dataclasses.dataclass(frozen=True)
class World:
    """A dataset and the miniature models trained on it."""

    name: str
    data: str
    models: str
    arguments: tuple[str, ...] = ()  # of `prepare scenes`


SCENES = World("scenes", "data/scenes", "models/scenes")


def run_command(name: str, *args: str, dry_run: bool = False) -> None:
    """Prints one command and runs it in this process; stops at the first that fails."""
    print(f"\n$ python -m har_jax.{name} {shlex.join(args)}", flush=True)
    if not dry_run:
        code = command_line.run(name, args)
        if code:
            raise SystemExit(code)


def prepare(world: World, *, dry_run: bool = False) -> None:
    """The dataset and the miniature models of a world, if they are not there."""
    if not os.path.exists(f"{world.data}/dataset.json"):
        out = f"--out={world.data}"
        run_command("prepare", "scenes", out, *world.arguments, dry_run=dry_run)
    if not os.path.exists(f"{world.models}/gpt2/config.json"):
        data, out = f"--data={world.data}", f"--out={world.models}"
        run_command("prepare", "foundation", data, out, dry_run=dry_run)


def train_and_score(
    run: pathlib.Path,
    config: str,
    changes: Mapping[str, Any],
    evaluate: str,
    *,
    dry_run: bool = False,
) -> None:
    """Trains a run and scores it on the test split, unless its scores are there.

    Args:
      run: the run directory.
      config: a preset, such as "mle:tiny".
      changes: settings of the configuration, such as {"optim.lr": 1e-5}.
      evaluate: a further argument of `har_jax.evaluate`.
    """
    if _scores(run).exists():
        return
    run_command("train", *training(run, config, changes), dry_run=dry_run)
    of, out = f"--checkpoint={run}", f"--out={_scores(run).parent}"
    run_command("evaluate", of, "--split=test", evaluate, out, dry_run=dry_run)


def training(run: pathlib.Path, config: str, changes: Mapping[str, Any]) -> list[str]:
    """Arguments of `har_jax.train`."""
    settings = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config={config}", f"--workdir={run}", *settings]


def read_scores(run: pathlib.Path) -> dict[str, Any]:
    """`scores.json` of the test split."""
    return json.loads(_scores(run).read_text())


def _scores(run: pathlib.Path) -> pathlib.Path:
    return run / "eval" / "test" / "scores.json"
