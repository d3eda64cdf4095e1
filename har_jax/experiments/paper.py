"""The table that the HAR paper stands on: ZeroCap against HAR, with error bars.

ZeroCap is deterministic and runs once; its sampled approximation, MLE and SCST run once for each
seed. All caption the same images and are scored with the same metrics. What is between them is told
by `evaluation.across_seeds`.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from har_jax.data.dataset import read_card
from har_jax.errors import UserError
from har_jax.evaluation.across_seeds import contrast, summarise
from har_jax.evaluation.bootstrap import LEVEL, RESAMPLES, paired
from har_jax.experiments.comparison import two_stages
from har_jax.experiments.costs import total_cost
from har_jax.experiments.evaluated import Evaluated, rows_of
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.experiments.systems import SCALES, System, evaluation, zerocap
from har_jax.files import write_bytes, write_json
from har_jax.miniature import scenes
from har_jax.reports.paper import chosen, markdown, page
from har_jax.reports.run_view import DatasetImages
from har_jax.reports.tables import lookup

CONTRASTS = (
    ("scst", "zerocap"),
    ("scst", "mle"),
    ("mle", "zerocap"),
    ("scst", "zerocap-approx"),
    ("zerocap", "zerocap-approx"),
)
"""Which systems are compared, the one that is expected to be better first."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much of it.

    Attributes:
      steps: of MLE and of SCST; None: the presets'.
      limit: the first N images of the test split; None: all.
      dry_run: print the commands only.

    Raises:
      UserError: numbers that cannot be.
    """

    scale: str
    out: pathlib.Path
    seeds: Sequence[int]
    steps: tuple[int | None, int | None] = (None, None)
    limit: int | None = None
    dry_run: bool = False

    def __post_init__(self):
        values = {"mle-steps": self.steps[0], "scst-steps": self.steps[1]}
        for name, value in values.items():
            if value is not None and value < 1:
                raise UserError(f"--{name}={value}: give at least 1")
        if self.limit is not None and self.limit < 2:
            raise UserError(f"--limit={self.limit}: give at least 2 images, or leave it out")

    def command_line(self, table: str) -> str:
        """The command that remakes a table."""
        words = ["python -m har_jax.reproduce", f"--table={table}", f"--scale={self.scale}"]
        words.append(f"--seeds={len(self.seeds)}")
        words += [f"--first-seed={self.seeds[0]}"] if self.seeds[0] else []
        given = (("mle-steps", self.steps[0]), ("scst-steps", self.steps[1]), ("limit", self.limit))
        words += [f"--{name}={value}" for name, value in given if value is not None]
        return " ".join(words)


def systems(settings: Settings) -> list[System]:
    """The rows of the table."""
    scale, limit = SCALES[settings.scale], settings.limit
    some: dict[str, Any] = {"control": "shuffle"} | ({} if limit is None else {"limit": limit})
    runs = [two_stages(settings.scale, seed, settings.steps) for seed in settings.seeds]
    sampled = [zerocap(scale, "approx", seed=seed, limit=limit) for seed in settings.seeds]
    once = [zerocap(scale, "repo", limit=limit)]
    return [
        System("zerocap", "ZeroCap", once, deterministic=True),
        System("zerocap-approx", "ZeroCap approx", sampled),
        System("mle", "MLE", [evaluation(mle, **some) for mle, _ in runs]),
        System("scst", "SCST", [evaluation(scst, **some) for _, scst in runs], parent="mle"),
    ]


def run(settings: Settings) -> None:
    """Makes what is missing and writes `OUT/paper.md`, `OUT/paper.json` and `OUT/paper.html`."""
    began = time.monotonic()
    with open_sweep(settings.out, dry_run=settings.dry_run) as sweep:
        rows = systems(settings)
        # Seed by seed: stopped early, a sweep has whole seeds.
        by_seed = itertools.zip_longest(*(system.evaluations for system in rows))
        parts = [part for seed in by_seed for part in seed if part is not None]
        scale, dry_run = SCALES[settings.scale], settings.dry_run
        sweep.make_all(parts, lambda: scale.prepare(zerocap=True, dry_run=dry_run))
        if settings.dry_run:
            return
        table = tabulate(settings, sweep, rows)
        write(settings, sweep, rows, table)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{markdown(table)}\n{minutes:.1f} minutes; see {settings.out / 'paper.html'}")


def write(settings: Settings, sweep: Sweep, rows: Sequence[System], table: dict[str, Any]) -> None:
    """The table as JSON, Markdown and a page."""
    write_json(settings.out / "paper.json", table)
    write_bytes(settings.out / "paper.md", markdown(table).encode())
    shown = {system.label: rows_of(sweep.place(system.evaluations[0])) for system in rows}
    images = DatasetImages(SCALES[settings.scale].data, "test")
    write_bytes(settings.out / "paper.html", page(table, chosen(shown, images)).encode())


def tabulate(settings: Settings, sweep: Sweep, rows: Sequence[System]) -> dict[str, Any]:
    """The contents of `paper.json`.

    Raises:
      UserError: systems were scored on different images.
    """
    data: str | None = SCALES[settings.scale].data
    if scenes.Settings.from_card(read_card(data)) is None:
        data = None  # of other images nobody knows what they show
    read = {
        system.name: Evaluated(sweep.places(system.evaluations), system.deterministic, data)
        for system in rows
    }
    ids = {name: found.image_ids for name, found in read.items()}
    first = next(iter(ids.values()))
    for name, own in ids.items():
        if any(order != first[0] for order in own):
            raise UserError(
                f"{name} was scored on other images than {rows[0].name}; remove the evaluation of "
                f"one of them from {settings.out} and give the same command again"
            )
    return {
        "made_by": settings.command_line("paper"),
        "scale": settings.scale,
        "split": "test",
        "n_images": len(first[0]),
        "seeds": list(settings.seeds),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "warnings": _warnings(rows, read),
        "skipped": _skipped(read),
        "systems": [_row(sweep, system, read[system.name]) for system in rows],
        "contrasts": _contrasts(rows, read),
    }


def _row(sweep: Sweep, system: System, found: Evaluated) -> dict[str, Any]:
    runs = [_runs_of(sweep, part) for part in system.evaluations]
    return {
        "name": system.name,
        "label": system.label,
        "deterministic": system.deterministic,
        "scores": summarise(found.scored),
        "captions_per_second": [lookup(s, "captions_per_second") for s in found.scores],
        "training": total_cost(runs),
        "source": [scores.get("source") for scores in found.scores],
        "parts": [sweep.name(part) for part in system.evaluations],
    }


def _runs_of(sweep: Sweep, evaluated: Any) -> list[pathlib.Path]:
    """The trainings that led to an evaluation, the first one first."""
    found: list[pathlib.Path] = []
    runs = [part for part in evaluated.parents.values() if part.command == "train"]
    while runs:
        found.insert(0, sweep.place(runs[0]))
        runs = [part for part in runs[0].parents.values() if part.command == "train"]
    return found


def _contrasts(rows: Sequence[System], read: dict[str, Evaluated]) -> list[dict[str, Any]]:
    by_name = {system.name: system for system in rows}
    found = []
    for ours, theirs in CONTRASTS:
        a, b = read[ours].scored, read[theirs].scored
        linked = by_name[ours].parent == theirs
        pairs = [(x, y) for x in a.statistics for y in b.statistics]
        if a.n == b.n:
            pairs = list(zip(a.statistics, b.statistics, strict=True))
        found.append(
            {
                "system": ours,
                "other": theirs,
                "labels": [by_name[ours].label, by_name[theirs].label],
                "linked": linked,
                "metrics": contrast(a, b, linked=linked),
                "seed_by_seed": [paired(x, y) for x, y in pairs] if a.n > 1 or b.n > 1 else [],
            }
        )
    return found


def _warnings(rows: Sequence[System], read: dict[str, Evaluated]) -> list[str]:
    """Those of the evaluations, each once."""
    told = [
        f"{system.label}: {text}"
        for system in rows
        for scores in read[system.name].scores
        for text in scores.get("warnings", [])
    ]
    return list(dict.fromkeys(told))


def _skipped(read: dict[str, Evaluated]) -> dict[str, str]:
    found = [s.get("skipped") or {} for evaluations in read.values() for s in evaluations.scores]
    return {name: str(why) for skipped in found for name, why in skipped.items()}
