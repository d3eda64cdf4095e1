"""The experiments on SCST's rewards and baselines, as one series of commands and one table.

Two worlds: the scenes, and their variant whose training captions guess a person's gender
(`miniature/scenes/people.py`). In each, an MLE run and SCST runs from it, for every seed; each run
is evaluated on the test split. What is finished is not made again.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from har_jax.errors import UserError
from har_jax.experiments.parts import Part
from har_jax.experiments.runs import SCENES, World, prepare, read_scores
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.experiments.systems import evaluation, training
from har_jax.files import write_bytes, write_json
from har_jax.reports.tables import Measure, contrast, markdown_table

SKEW = 0.8
"""Share of the training pictures in which the skewed captions follow the stereotype."""
SKEWED = World("skewed", "data/skewed", "models/skewed", (f"--skew={SKEW}",))


@dataclasses.dataclass(frozen=True)
class System:
    """A row of the table; without a reward it is the MLE run that the others start from."""

    name: str  # of its run directories
    label: str
    world: World
    reward: str = ""
    baseline: str = "greedy"

    @property
    def config(self) -> str:
        return "scst:tiny" if self.reward else "mle:tiny"


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
    """How much of it: `mle_steps` and `scst_steps` None for the presets'.

    Raises:
      UserError: numbers that cannot be.
    """

    out: pathlib.Path
    seeds: Sequence[int]
    mle_steps: int | None = None
    scst_steps: int | None = 150
    skewed_seeds: int | None = None  # of the skewed variant: the first so many; None: all
    dry_run: bool = False  # print the commands only

    def __post_init__(self):
        for name in ("mle_steps", "scst_steps", "skewed_seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}={value}: give at least 1")

    def seeds_of(self, system: System) -> Sequence[int]:
        return self.seeds[: self.skewed_seeds] if system.world == SKEWED else self.seeds


def run(settings: Settings) -> None:
    """Makes what is missing and writes `OUT/rewards.md` and `OUT/rewards.json`."""
    began = time.monotonic()
    with open_sweep(settings.out, dry_run=settings.dry_run) as sweep:
        parts = [
            scored(system, seed, settings)
            for seed in settings.seeds
            for system in SYSTEMS
            if seed in settings.seeds_of(system)
        ]
        sweep.make_all(parts, lambda: _prepare(settings.dry_run))
        if settings.dry_run:
            return
        text = report(settings, sweep)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{text}\n{minutes:.1f} minutes; written to {settings.out / 'rewards.md'}")


def _prepare(dry_run: bool) -> None:
    for world in (SCENES, SKEWED):
        prepare(world, dry_run=dry_run)


def scored(system: System, seed: int, settings: Settings) -> Part:
    """The evaluation of a run, taken at its end."""
    return evaluation(run_of(system, seed, settings), step="latest")


def run_of(system: System, seed: int, settings: Settings) -> Part:
    """A system's run. No validation on the way."""
    world = system.world
    changes: dict[str, Any] = {
        "seed": seed,
        "data.dir": world.data,
        "model.encoder": f"{world.models}/clip-l",
        "model.lm": f"{world.models}/mistral",
        "eval.clip_score": f"{world.models}/clip-b",
        "eval.every": 0,
    }
    name, config = f"{system.name}-{seed}", system.config
    if not system.reward:
        return training(name, config, changes, steps=settings.mle_steps)
    changes |= {"scst.reward": system.reward, "scst.baseline": system.baseline}
    if "clip_score" in system.reward:
        # The encoder's own CLIP rewards; the one that scores had no part in it.
        changes["scst.reward_clip"] = f"{world.models}/clip-l"
    start = next(s for s in SYSTEMS if s.world == world and not s.reward)
    parent = run_of(start, seed, settings)
    return training(name, config, changes, parent=parent, steps=settings.scst_steps)


_QUALITY = (
    Measure("CIDEr", "CIDEr"),
    Measure("Bleu_4", "BLEU-4"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("health/mean_length", "words", "words", "neither"),
    Measure("health/bad_end_rate", "bad endings", "rate", "lower"),
    Measure("health/repetition_rate", "repeated bigrams", "rate", "lower"),
)
_GENDER = (
    Measure("CIDEr", "CIDEr"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("bias/unsupported_rate", "unsupported words", "rate", "lower"),
    Measure("bias/contradiction_rate", "contradicting words", "rate", "lower"),
    Measure("bias/neutral_rate", "neutral captions", "rate", "neither"),
    Measure("bias/recall_male", "men called so", "rate", "higher"),
    Measure("bias/recall_female", "women called so", "rate", "higher"),
)
_AGAINST = (
    ("skewed-cider", "skewed-mle"),
    ("skewed-bias-2", "skewed-cider"),
    ("skewed-bias-5", "skewed-cider"),
)
_TABLES = (  # world, columns, and which rows are compared seed by seed
    (SCENES, _QUALITY, (("greedy", "mle"), ("loo", "greedy"), ("clip", "mle"))),
    (SKEWED, _GENDER, _AGAINST),
)


def report(settings: Settings, sweep: Sweep) -> str:
    """Writes the table and the scores behind it; returns the table."""
    by_seed = {
        system.name: {
            str(seed): read_scores(sweep.place(scored(system, seed, settings)))
            for seed in settings.seeds_of(system)
        }
        for system in SYSTEMS
    }
    scores = {name: list(found.values()) for name, found in by_seed.items()}
    labels = {system.name: system.label for system in SYSTEMS}
    n = scores[SYSTEMS[0].name][0]["n_images"]
    made_by = f"made by `{command_line(settings)}`."
    parts = [f"Test splits of {n} images, mean ± std over the seeds; {made_by}"]
    for world, measures, contrasts in _TABLES:
        rows = {s.label: scores[s.name] for s in SYSTEMS if s.world == world}
        n_seeds = len(next(iter(rows.values())))
        parts.append(f"### {world.name}, {n_seeds} seed(s)\n\n{markdown_table(rows, measures)}")
        told = [contrast(rows, labels[a], labels[b], measures[:4]) for a, b in contrasts]
        parts.append("\n".join(f"- {line}" for line in told))
    text = "\n\n".join(parts) + "\n"
    write_bytes(settings.out / "rewards.md", text.encode())
    record = {
        system.name: {
            "label": system.label,
            "data": system.world.data,
            "reward": system.reward,
            "baseline": system.baseline if system.reward else "",
            "scores": by_seed[system.name],
        }
        for system in SYSTEMS
    }
    write_json(settings.out / "rewards.json", record)
    return text


def command_line(settings: Settings) -> str:
    """The command that remakes the table."""
    first, n = settings.seeds[0], len(settings.seeds)
    words = ["python -m har_jax.reproduce --table=rewards", f"--seeds={n}"]
    words += [f"--first-seed={first}"] if first else []
    for name in ("mle_steps", "scst_steps", "skewed_seeds"):
        if (value := getattr(settings, name)) is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    return " ".join(words)
