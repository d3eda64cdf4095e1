"""The comparison of the documentation: MLE | SCST on the test split, over seeds, and ZeroCap on
some of its images."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

from har_jax.experiments.parts import Part
from har_jax.experiments.runs import read_scores
from har_jax.experiments.subset import first_images
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.experiments.systems import SCALES, evaluation, training, zerocap
from har_jax.reports.page import write_report
from har_jax.reports.tables import comparison_table, rows_table

ZEROCAP_IMAGES = 100
"""Images that ZeroCap captions for this table, the first of the split: it takes much longer for one
than the others do. 0: none, and no word of ZeroCap."""


def run(
    scale: str,
    seeds: Sequence[int],
    out: pathlib.Path,
    *,
    steps: tuple[int | None, int | None] = (None, None),
    dry_run: bool = False,
) -> None:
    """Makes what is missing, writes a report for each run, and prints the table.

    Args:
      scale: "tiny" for the scenes and miniature models, "full" for COCO and published weights.
      out: holds the run directories `mle-SEED` and `scst-SEED`.
      steps: of MLE and of SCST; None: the presets'.
      dry_run: print the commands only.
    """
    began = time.monotonic()
    with open_sweep(out, dry_run=dry_run) as sweep:
        SCALES[scale].prepare(zerocap=ZEROCAP_IMAGES > 0, dry_run=dry_run)
        scored: dict[str, list[pathlib.Path]] = {"MLE": [], "SCST": []}
        reports = []
        for seed in seeds:
            stages = two_stages(scale, seed, steps)
            parent = None
            for label, stage in zip(scored, stages, strict=True):
                scored[label].append(sweep.make(evaluation(stage, control="shuffle")))
                if not dry_run:
                    reports.append(write_report(sweep.place(stage), compare_with=parent))
                parent = sweep.place(stage)
        on_some = _zerocap(sweep, scale, {name: dirs[0] for name, dirs in scored.items()})
    if dry_run:
        return
    minutes = (time.monotonic() - began) / 60
    print(f"\ntest split, {len(seeds)} seed(s), {minutes:.1f} minutes\n")
    print(comparison_table({k: [read_scores(d) for d in dirs] for k, dirs in scored.items()}))
    print(on_some)
    for path in reports[1::2]:
        print(f"report: {path}")


def two_stages(
    scale: str, seed: int, steps: tuple[int | None, int | None] = (None, None)
) -> tuple[Part, Part]:
    """The MLE run of a seed, and the SCST run that starts from it."""
    preset, changes = SCALES[scale].preset, {"seed": seed}
    mle = training(f"mle-{seed}", f"mle:{preset}", changes, steps=steps[0])
    scst = training(f"scst-{seed}", f"scst:{preset}", changes, parent=mle, steps=steps[1])
    return mle, scst


def _zerocap(sweep: Sweep, scale: str, others: dict[str, pathlib.Path]) -> str:
    """ZeroCap's captions of the first images, beside those of the first seed's runs."""
    if not ZEROCAP_IMAGES:
        return ""
    directory = sweep.make(zerocap(SCALES[scale], "repo", limit=ZEROCAP_IMAGES))
    if sweep.dry_run:
        return ""
    systems = {"ZeroCap (no training)": directory, **others}
    rows = first_images(systems, ZEROCAP_IMAGES)
    n = next(iter(rows.values()))["n_images"]
    seed = " of the first seed" if others else ""
    title = f"the first {n} images only, for ZeroCap is slow; MLE and SCST{seed}"
    return "\n" + rows_table({name: [scores] for name, scores in rows.items()}, title)
