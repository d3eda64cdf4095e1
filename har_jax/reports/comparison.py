"""The page of several runs: scores with intervals, curves over each other, captions of the same
images, and the settings that differ.

As in `page`, this module decides what is shown; `templates/comparison.html.j2` says how, and
escapes every value.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.data.features.cache import short
from har_jax.errors import UserError
from har_jax.reports.charts import COLOURS, compared_charts
from har_jax.reports.dots import Dots, Estimate, make_dots
from har_jax.reports.gallery import GROUPS, cards
from har_jax.reports.page import (
    columns_of,
    dataset_of,
    flat,
    interval_notes,
    sizes_of,
    templates,
    with_intervals,
    write_page,
)
from har_jax.reports.run_view import RunView, ScoredSplit, common_split, read_view
from har_jax.reports.tables import comparison_rows, format_value, interval_of, step_of

COMPARISON = "comparison.html"
_FEW = 8  # images of each group, where nothing else is asked for


def write_comparison(
    run_dir: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    n_images: int = _FEW,
) -> pathlib.Path:
    """Writes the page of a run beside others, which come first, and returns its path.

    Args:
      out: the file; RUN/comparison.html if None.
      n_images: images of each group.

    Raises:
      UserError: one of them is no run, comes twice, or they are too many to be told apart.
    """
    views = [read_view(place) for place in (*others, run_dir)]
    if len(views) > COLOURS:
        raise UserError(
            f"a page compares up to {COLOURS} runs, got {len(views)}; leave some out of --against"
        )
    resolved = [view.path.resolve() for view in views]
    for place, count in collections.Counter(resolved).items():
        if count > 1:
            raise UserError(f"{place} is given {count} times; a run is compared with other ones")
    names = [place.name for place in resolved]
    if len(set(names)) < len(names):
        names = [str(view.path) for view in views]
    if len(set(names)) < len(names):  # a/../b and b: different places, or they would be one above
        names = [str(place) for place in resolved]
    path = pathlib.Path(out) if out else pathlib.Path(run_dir) / COMPARISON
    write_page(path, render(dict(zip(names, views, strict=True)), n_images))
    return path


def render(runs: Mapping[str, RunView], n_images: int = _FEW) -> str:
    """The page as text; the last run is the one that the others are compared with."""
    views = list(runs.values())
    split = common_split(views[::-1])
    columns = columns_of(runs, split)
    rows = comparison_rows({name: [found.scores] for name, found in columns.items()})
    images = dataset_of(views[-1], split) if columns else None
    several = len(columns) > 1
    gallery = cards(columns, images, n_images)
    present = {group for card in gallery for group in card.places}
    charts, others = compared_charts({name: view.series for name, view in runs.items()})
    *before, last = runs
    return (
        templates()
        .get_template("comparison.html.j2")
        .render(
            title=f"{last} beside {', '.join(before)}",
            runs=[_told(name, view) for name, view in runs.items()],
            columns=list(columns),
            steps=[step_of(found.scores) for found in columns.values()],
            split=split,
            sizes=sizes_of(columns),
            rows=with_intervals(rows, columns),
            change=len(columns) == 2,
            warnings=_warnings(runs, columns, split),
            notes=interval_notes(columns),
            dots=_dots(columns),
            groups=list(GROUPS[several]),
            choices={key: label for key, label in GROUPS[several].items() if key in present},
            shown=gallery,
            why_no_images=images.reason if images else "no configuration names a dataset",
            charts=charts,
            others=others,
            differing=differing(runs),
        )
    )


def _told(name: str, run: RunView) -> list[str]:
    """A row of the table of runs."""
    best = run.best
    steps = run.setting("steps")
    figures = best.figures if best else {}
    return [
        name,
        run.stage,
        f"{run.reached:,}" + (f" of {int(steps):,}" if steps else ""),
        f"{best.step:,}" if best else "–",
        *(format_value(figures.get(key), "score") for key in ("CIDEr", "Bleu_4", "loss")),
        str(run.path),
    ]


def _warnings(
    runs: Mapping[str, RunView], columns: Mapping[str, ScoredSplit], split: str | None
) -> list[str]:
    """What makes scores of these runs no comparison."""
    found = [
        f"{name} was not evaluated on {split}" for name in runs if columns and name not in columns
    ]
    seen: dict[str, dict[str, list[str]]] = {"images": {}, "metrics": {}}
    for name, each in columns.items():
        n = str(each.scores.get("n_images") or len(each.rows))
        seen["images"].setdefault(n, []).append(name)
        signature = str(each.scores.get("signature") or "")
        seen["metrics"].setdefault(signature, []).append(name)
    if len(seen["images"]) > 1:
        found.append("the runs were scored on different numbers of images: not comparable")
    if len(seen["metrics"]) > 1:
        told = "; ".join(f"{', '.join(own)}: {what}" for what, own in seen["metrics"].items())
        found.append(f"the runs were scored by different metrics ({told})")
    return found + [f"{n}: {w}" for n, each in columns.items() for w in _warned(each)]


def _warned(found: ScoredSplit) -> list[str]:
    return list(found.scores.get("warnings", []))


def _dots(columns: Mapping[str, ScoredSplit]) -> list[Dots]:
    """A chart for each score, with the runs' intervals; none where there is nothing to compare."""
    if len(columns) < 2:
        return []
    charts = []
    for row in comparison_rows({name: [each.scores] for name, each in columns.items()}):
        measure = row.measure
        if measure.kind != "score":
            continue
        estimates = [
            Estimate(name, cell.mean, text, interval_of(each.scores, measure.key))
            for (name, each), cell, text in zip(columns.items(), row.cells, row.texts, strict=True)
            if cell.mean is not None
        ]
        charts.append(make_dots(measure.label, estimates))
    return charts


def differing(runs: Mapping[str, RunView]) -> list[tuple[str, list[str]]]:
    """The settings, and what else a run is made of, that are not the same in all runs: (key, its
    value in each run, "–" where a run has none)."""
    each = [dict(flat(run.config)) | _made_of(run) for run in runs.values()]
    keys = dict.fromkeys(key for values in each for key in values)
    found = []
    for key in keys:
        values = [values.get(key) for values in each]
        if any(value != values[0] for value in values):
            found.append((key, [_shown(value) for value in values]))
    return found


def _shown(value: Any) -> str:
    text = "–" if value in (None, "") else str(value)
    return short(text) if text.startswith("sha256:") else text


def _made_of(run: RunView) -> dict[str, Any]:
    """What `run.json` says of a run's origin, as far as runs can be compared by it."""
    keys = ("parent", "base", "versions", "reward_signature", "devices", "processes", "data")
    own = {key: run.info[key] for key in keys if run.info.get(key) is not None}
    return dict(flat({"run.json": own}))
