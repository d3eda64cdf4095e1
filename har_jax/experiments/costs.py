"""What a system cost to train, by the logs of its runs: steps and time."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from har_jax.files import read_json_lines
from har_jax.reports.run_view import series_of


def training_cost(run: pathlib.Path) -> tuple[int, float | None]:
    """(steps, seconds) of a run, by its log; None for the time where the log does not tell it.

    Compiling is in the time; validation, and what a kill cost, are not.
    """
    rows = read_json_lines(run / "metrics.jsonl")
    speeds = series_of(rows).get("train/steps_per_second", [])
    seconds, before = 0.0, 0.0
    for step, speed in speeds:
        seconds += (step - before) / speed if speed > 0 else 0.0
        before = step
    return max((row["step"] for row in rows), default=0), seconds if speeds else None


def total_cost(runs: Sequence[Sequence[pathlib.Path]]) -> dict[str, Any]:
    """{"steps", "seconds"} of a system.

    Args:
      runs: for each seed the runs that led to it: MLE, then SCST. Empty without training.

    Returns:
      `steps` of each stage, of the first seed; `seconds` of all stages together, for each seed,
      None where a log does not tell them.
    """
    if not runs or not runs[0]:
        return {"steps": [], "seconds": None}
    costs = [[training_cost(run) for run in stages] for stages in runs]
    seconds = []
    for stages in costs:
        known = [s for _, s in stages if s is not None]
        seconds.append(sum(known) if len(known) == len(stages) else None)
    return {
        "steps": [steps for steps, _ in costs[0]],
        "seconds": None if None in seconds else seconds,
    }
