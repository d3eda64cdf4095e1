"""The comparison of the documentation: MLE | SCST on the test split, over seeds."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

from har_jax.experiments.runs import SCENES, prepare, read_scores, train_and_score
from har_jax.reports.page import write_report
from har_jax.reports.tables import comparison_table


def run(scale: str, seeds: Sequence[int], out: pathlib.Path, *, dry_run: bool = False) -> None:
    """Makes what is missing, writes a report for each run, and prints the table.

    Args:
      scale: "tiny" for the scenes and miniature models, "full" for COCO and published weights.
      out: holds the run directories `mle-SEED` and `scst-SEED`.
      dry_run: print the commands only.
    """
    began = time.monotonic()
    preset = {"tiny": "tiny", "full": "coco"}[scale]
    if scale == "tiny":
        prepare(SCENES, dry_run=dry_run)
    for seed in seeds:
        parent = None
        for stage in ("mle", "scst"):
            directory = out / f"{stage}-{seed}"
            changes = {"seed": seed, **({"init_from": parent} if parent else {})}
            config, control = f"{stage}:{preset}", "--control=shuffle"
            train_and_score(directory, config, changes, control, dry_run=dry_run)
            if not dry_run:
                write_report(directory, compare_with=parent)
            parent = directory
    if dry_run:
        return
    runs = {"MLE": "mle", "SCST": "scst"}
    scores = {k: [read_scores(out / f"{v}-{seed}") for seed in seeds] for k, v in runs.items()}
    minutes = (time.monotonic() - began) / 60
    print(f"\ntest split, {len(seeds)} seed(s), {minutes:.1f} minutes\n")
    print(comparison_table(scores))
    for seed in seeds:
        print(f"report: {out / f'scst-{seed}' / 'report.html'}")
