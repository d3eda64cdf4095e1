"""The comparison of the documentation: MLE | SCST on the test split, over seeds, and ZeroCap on
some of its images."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

from har_jax.experiments.parts import Part
from har_jax.experiments.runs import read_scores
from har_jax.experiments.subset import first_images
from har_jax.experiments.sweep import open_sweep
from har_jax.experiments.systems import SCALES, evaluation, training, zerocap
from har_jax.reports.page import write_report
from har_jax.reports.tables import comparison_table, rows_table

ZEROCAP_IMAGES = 50
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
        runs = [two_stages(scale, seed, steps) for seed in seeds]
        scored = {
            label: [evaluation(stages[i], control="shuffle") for stages in runs]
            for i, label in enumerate(("MLE", "SCST"))
        }
        parts = [part for pair in zip(*scored.values(), strict=True) for part in pair]
        slow = zerocap(SCALES[scale], "repo", limit=ZEROCAP_IMAGES)
        parts += [slow] if ZEROCAP_IMAGES else []
        sweep.make_all(
            parts, lambda: SCALES[scale].prepare(zerocap=ZEROCAP_IMAGES > 0, dry_run=dry_run)
        )
        if dry_run:
            return
        reports = []
        for mle, scst in runs:
            write_report(sweep.place(mle))
            reports.append(write_report(sweep.place(scst), compare_with=sweep.place(mle)))
        places = {label: sweep.places(own) for label, own in scored.items()}
        minutes = (time.monotonic() - began) / 60
        print(f"\ntest split, {len(seeds)} seed(s), {minutes:.1f} minutes\n")
        print(comparison_table({k: [read_scores(d) for d in own] for k, own in places.items()}))
        if ZEROCAP_IMAGES:
            print("\n" + _on_some(sweep.place(slow), {k: own[0] for k, own in places.items()}))
    for path in reports:
        print(f"report: {path}")


def two_stages(
    scale: str, seed: int, steps: tuple[int | None, int | None] = (None, None)
) -> tuple[Part, Part]:
    """The MLE run of a seed, and the SCST run that starts from it."""
    preset, features, changes = SCALES[scale].preset, SCALES[scale].features, {"seed": seed}
    mle, scst = f"mle-{seed}", f"scst-{seed}"
    first = training(mle, f"mle:{preset}", changes, steps=steps[0], features=features)
    then = {"parent": first, "steps": steps[1], "features": features}
    return first, training(scst, f"scst:{preset}", changes, **then)


def _on_some(zerocaps: pathlib.Path, others: dict[str, pathlib.Path]) -> str:
    """ZeroCap's captions of the first images, beside those of the first seed's runs."""
    rows = first_images({"ZeroCap (no training)": zerocaps, **others}, ZEROCAP_IMAGES)
    n = next(iter(rows.values()))["n_images"]
    title = f"ZeroCap is slow: the first {n} images only; of MLE and SCST the first seed"
    return rows_table({name: [scores] for name, scores in rows.items()}, title)
