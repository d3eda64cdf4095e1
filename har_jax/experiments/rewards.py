"""The experiments on SCST's rewards and baselines, as one series of commands and one table.

Two worlds: the scenes, and their variant whose training captions guess a person's gender
(`miniature/scenes/people.py`). In each, an MLE run and SCST runs from it, for every seed; each run
is evaluated on the test split. What exists already is not made again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from har_jax.errors import UserError
from har_jax.files import write_bytes, write_json

SKEW = 0.8
"""Share of the training pictures in which the skewed captions follow the stereotype."""


@dataclasses.dataclass(frozen=True)
class World:
    """A dataset and the miniature models trained on it."""

    name: str
    data: str
    models: str
    arguments: tuple[str, ...] = ()  # of `prepare scenes`


SCENES = World("scenes", "data/scenes", "models/scenes")
SKEWED = World("skewed", "data/skewed", "models/skewed", (f"--skew={SKEW}",))


@dataclasses.dataclass(frozen=True)
class System:
    """A row of the table; without a reward it is the MLE run that the others start from."""

    name: str  # of its run directories
    label: str
    world: World
    reward: str = ""
    baseline: str = "greedy"


SYSTEMS = (
    System("mle", "MLE", SCENES),
    System("greedy", "SCST, greedy baseline", SCENES, "cider_d"),
    System("loo", "SCST, leave-one-out", SCENES, "cider_d", "leave_one_out"),
    System("clip", "SCST, CIDEr-D + 2 CLIPScore", SCENES, "cider_d + 2*clip_score"),
    System("skewed-mle", "MLE", SKEWED),
    System("skewed-cider", "SCST, CIDEr-D", SKEWED, "cider_d"),
    System("skewed-bias-2", "SCST, CIDEr-D - 2 bias", SKEWED, "cider_d - 2*bias"),
    System("skewed-bias-5", "SCST, CIDEr-D - 5 bias", SKEWED, "cider_d - 5*bias"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much of it: `mle_steps` and `scst_steps` None for the presets'."""

    out: pathlib.Path
    seeds: Sequence[int]
    mle_steps: int | None = None
    scst_steps: int | None = 150
    skewed_seeds: int | None = None  # of the skewed variant: the first so many; None: all
    dry_run: bool = False  # print the commands only

    def seeds_of(self, system: System) -> Sequence[int]:
        return self.seeds[: self.skewed_seeds] if system.world == SKEWED else self.seeds


def run(settings: Settings) -> None:
    """Makes what is missing and writes `OUT/rewards.md` and `OUT/rewards.json`."""
    began = time.monotonic()
    for world in (SCENES, SKEWED):
        prepare(world, dry_run=settings.dry_run)
    for seed in settings.seeds:
        for system in SYSTEMS:
            if seed in settings.seeds_of(system):
                _make(system, seed, settings)
    if settings.dry_run:
        return
    text = report(settings)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{text}\n{minutes:.1f} minutes; written to {settings.out / 'rewards.md'}")


def prepare(world: World, *, dry_run: bool = False) -> None:
    """The dataset and the miniature models of a world, if they are not there."""
    from har_jax import prepare as command

    if not pathlib.Path(world.data, "dataset.json").exists():
        arguments = ["scenes", f"--out={world.data}", *world.arguments]
        run_command(command.main, "har_jax.prepare", *arguments, dry_run=dry_run)
    if not pathlib.Path(world.models, "mistral", "config.json").exists():
        arguments = ["foundation", f"--data={world.data}", f"--out={world.models}"]
        run_command(command.main, "har_jax.prepare", *arguments, dry_run=dry_run)


def _make(system: System, seed: int, settings: Settings) -> None:
    from har_jax import evaluate, train

    directory = settings.out / f"{system.name}-{seed}"
    scored = directory / "eval" / "test"
    if (scored / "scores.json").exists():
        return
    run_command(
        train.main, "har_jax.train", *_training(system, seed, settings), dry_run=settings.dry_run
    )
    run_command(
        evaluate.main,
        "har_jax.evaluate",
        f"--checkpoint={directory}",
        "--split=test",
        "--step=latest",
        f"--out={scored}",
        dry_run=settings.dry_run,
    )


def _training(system: System, seed: int, settings: Settings) -> list[str]:
    """Arguments of `har_jax.train`. No validation on the way: every run is taken at its end."""
    world, stage = system.world, "scst" if system.reward else "mle"
    steps = settings.scst_steps if system.reward else settings.mle_steps
    changes: dict[str, Any] = {
        "seed": seed,
        "data.dir": world.data,
        "model.clip": f"{world.models}/clip-l",
        "model.lm": f"{world.models}/mistral",
        "eval.clip_score": f"{world.models}/clip-b",
        "eval.every": 0,
        **({} if steps is None else {"steps": steps}),
    }
    if system.reward:
        parent = next(s for s in SYSTEMS if s.world == world and not s.reward)
        changes |= {
            "init_from": settings.out / f"{parent.name}-{seed}",
            "scst.reward": system.reward,
            "scst.baseline": system.baseline,
        }
        if "clip_score" in system.reward:
            # The encoder's own CLIP rewards; the one that scores had no part in it.
            changes["scst.reward_clip"] = f"{world.models}/clip-l"
    return [
        f"--config=configs/{stage}.py:tiny",
        f"--workdir={settings.out / f'{system.name}-{seed}'}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


_SKEWED_CONTRASTS = (
    ("skewed-cider", "skewed-mle"),
    ("skewed-bias-2", "skewed-cider"),
    ("skewed-bias-5", "skewed-cider"),
)


def report(settings: Settings) -> str:
    """Writes the table and the scores behind it; returns the table."""
    from har_jax.reports.rewards_table import GENDER, QUALITY, markdown, sentence

    def scores_of(system: System) -> list[dict[str, Any]]:
        return [
            json.loads((settings.out / f"{system.name}-{seed}/eval/test/scores.json").read_text())
            for seed in settings.seeds_of(system)
        ]

    scores = {system.name: scores_of(system) for system in SYSTEMS}
    n = scores[SYSTEMS[0].name][0]["n_images"]
    parts = [
        f"Test splits of {n} images, mean ± std over the seeds; made by `{command_line(settings)}`."
    ]
    for world, measures, contrasts in (
        (SCENES, QUALITY, (("greedy", "mle"), ("loo", "greedy"), ("clip", "mle"))),
        (SKEWED, GENDER, _SKEWED_CONTRASTS),
    ):
        rows = {s.label: scores[s.name] for s in SYSTEMS if s.world == world}
        labels = {s.name: s.label for s in SYSTEMS}
        n_seeds = len(next(iter(rows.values())))
        parts.append(f"### {world.name}, {n_seeds} seed(s)\n\n{markdown(rows, measures)}")
        parts += [
            "- " + sentence(rows, labels[name], labels[other], measures[:4])
            for name, other in contrasts
        ]
    text = "\n\n".join(parts).replace("\n\n- ", "\n- ").replace("|\n- ", "|\n\n- ") + "\n"
    write_bytes(settings.out / "rewards.md", text.encode())
    write_json(
        settings.out / "rewards.json",
        {
            system.name: {
                "label": system.label,
                "data": system.world.data,
                "reward": system.reward,
                "baseline": system.baseline if system.reward else "",
                "scores": dict(
                    zip(map(str, settings.seeds_of(system)), scores[system.name], strict=True)
                ),
            }
            for system in SYSTEMS
        },
    )
    return text


def command_line(settings: Settings) -> str:
    """The command that remakes the table."""
    first, n = settings.seeds[0], len(settings.seeds)
    words = ["python -m har_jax.reproduce --table=rewards", f"--seeds={n}"]
    words += [f"--first-seed={first}"] if first else []
    words += [f"--mle-steps={settings.mle_steps}"] if settings.mle_steps is not None else []
    words += [f"--scst-steps={settings.scst_steps}"] if settings.scst_steps is not None else []
    words += [f"--skewed-seeds={settings.skewed_seeds}"] if settings.skewed_seeds else []
    return " ".join(words)


def run_command(
    main: Callable[[Sequence[str]], int], module: str, *args: str, dry_run: bool = False
) -> None:
    """Runs one command in this process, as it would be typed; stops at the first that fails."""
    print(f"\n$ python -m {module} {shlex.join(args)}", flush=True)
    if dry_run:
        return
    code = main(list(args))
    if code:
        raise SystemExit(code)


def check(settings: Settings) -> None:
    """Raises `UserError` for numbers of steps that cannot be."""
    for name, value in (
        ("--mle-steps", settings.mle_steps),
        ("--scst-steps", settings.scst_steps),
        ("--skewed-seeds", settings.skewed_seeds),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: give at least 1")
