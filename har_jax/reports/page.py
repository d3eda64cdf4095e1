"""`report.html` of a run: what it scored, what it writes below images, and how it got there.

One file without links: styles, charts and images are inside. What does not exist yet (evaluations,
images, a parent) is left out, so a report can be written at any time. This module decides what is
shown; `templates/` say how, and escape every value.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from har_jax.data.features.cache import short
from har_jax.files import write_bytes
from har_jax.reports.charts import STEP_PARTS, Series, main_charts, other_charts
from har_jax.reports.gallery import GROUPS, cards, stories, words_of
from har_jax.reports.run_view import (
    Best,
    DatasetImages,
    RunView,
    ScoredSplit,
    common_split,
    is_run,
    read_view,
)
from har_jax.reports.tables import (
    MEASURES,
    Row,
    comparison_rows,
    format_value,
    interval_of,
    lookup,
    step_of,
)

REPORT = "report.html"
"""Where a run's report is, below the run."""
_TILES = ("CIDEr", "Bleu_4", "CLIPScore", "health/bad_end_rate")
_DEEPEST = 10  # sections in sections of a configuration
_STAGES = {"mle": "Maximum likelihood", "scst": "Self-critical training"}


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    compare_with: str | os.PathLike[str] | None = None,
    n_images: int = 24,
) -> pathlib.Path:
    """Writes the report of a run and returns its path.

    Args:
      out: the file; RUN/report.html if None.
      compare_with: the run before (SCST's MLE); None takes the parent that run.json names.
      n_images: images of each group: biggest gains, biggest losses, random.

    Raises:
      UserError: there is no such run directory, or nothing of a run in it.
    """
    run = read_view(run_dir)
    parent = None
    named = run.info.get("parent") or {}
    other = named.get("run") or named.get("path")
    if compare_with is not None:
        parent = read_view(compare_with)
    elif other and os.path.isdir(other) and is_run(other):  # which never raise
        parent = read_view(other)
    path = pathlib.Path(out) if out else run.path / REPORT
    write_page(path, render(run, parent, n_images))
    return path


def write_page(path: pathlib.Path, text: str) -> None:
    """Replaces a page by another in one step."""
    # Names and texts of others may hold halves of characters, which no file can.
    write_bytes(path, text.encode(errors="replace"))


@functools.cache
def templates() -> jinja2.Environment:
    """The environment of `templates/`: what a template prints is escaped, and must exist."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("har_jax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words_of"] = words_of
    return environment


def render(run: RunView, parent: RunView | None, n_images: int) -> str:
    """The page as text."""
    runs = [parent, run] if parent else [run]
    stages = [view.stage.upper() for view in runs]
    names = stages if len(set(stages)) == len(runs) else [view.path.name for view in runs]
    split = common_split(runs[::-1])
    columns = columns_of(dict(zip(names, runs, strict=True)), split)
    rows = comparison_rows({name: [found.scores] for name, found in columns.items()})
    shown = {row.measure.key: row for row in rows}
    images = dataset_of(run, split)
    gallery = cards(columns, images, n_images)
    groups = GROUPS[len(columns) > 1]
    present = {group for card in gallery for group in card.places}
    warnings = (w for found in columns.values() for w in found.scores.get("warnings", []))
    no_dataset = "the run's configuration names no dataset"
    page = templates().get_template("page.html.j2")
    return page.render(
        title=f"{_STAGES.get(run.stage, run.stage)}: {run.path.resolve().name}"
        + (f", after {parent.path.name}" if parent else ""),
        about=_about(run),
        validated=validated(run.best),
        to_evaluate=shlex.join([f"--checkpoint={run.path}", f"--out={run.path / 'eval/test'}"]),
        columns=list(columns),
        steps=[step_of(found.scores) for found in columns.values()],
        split=split,
        sizes=sizes_of(columns),
        tiles=[shown[key] for key in _TILES if key in shown],
        rows=with_intervals(rows, columns),
        warnings=list(dict.fromkeys(warnings)),
        notes=interval_notes(columns) + _notes(columns),
        groups=list(groups),
        choices={key: label for key, label in groups.items() if key in present},
        shown=gallery,
        why_no_images=images.reason if images else no_dataset,
        charts=main_charts(run.series, parent.series if parent else {}, names[0]),
        others=other_charts(run.series),
        events=[(event.get("step"), _event(event)) for event in run.events],
        told=stories(run, images if split == run.setting("data.val_split") else None),
        origin=[pair for pair in _origin(run, parent, columns).items() if pair[1]],
        settings=flat(run.config),
    )


def columns_of(runs: Mapping[str, RunView], split: str | None) -> dict[str, ScoredSplit]:
    """The runs that were evaluated on a split, with what they scored."""
    return {name: run.splits[split] for name, run in runs.items() if split in run.splits}


def sizes_of(columns: Mapping[str, ScoredSplit]) -> str:
    """How many images were scored; several numbers where runs differ."""
    sizes = {found.scores.get("n_images") or len(found.rows) for found in columns.values()}
    return " and ".join(f"{n:,}" for n in sorted(sizes))


class Scored(NamedTuple):
    """A row of the table of scores, with the interval below each cell, "" where there is none."""

    row: Row
    intervals: list[str]


def with_intervals(rows: Sequence[Row], columns: Mapping[str, ScoredSplit]) -> list[Scored]:
    found = []
    for row in rows:
        pairs = [interval_of(each.scores, row.measure.key) for each in columns.values()]
        ends = [[format_value(end, row.measure.kind) for end in pair or ()] for pair in pairs]
        found.append(Scored(row, [" – ".join(pair) for pair in ends]))
    return found


def interval_notes(columns: Mapping[str, ScoredSplit]) -> list[str]:
    """What the small figures below scores are."""
    found: dict[str, None] = {}
    for each in columns.values():
        level, n = (lookup(each.scores, f"confidence/{key}") for key in ("level", "resamples"))
        if level is not None and n is not None:
            how = f"bootstrap over images, {n:,.0f} resamples"
            found[f"Below a score: its {100 * level:g} % interval ({how})."] = None
    return list(found)


def validated(best: Best | None) -> str:
    """`Best step by validation: 350. CIDEr 2.868, ...`; "" where there was no validation."""
    if best is None:
        return ""
    measures = [measure for measure in MEASURES if measure.key in best.figures]
    told = [f"{m.label} {format_value(best.figures[m.key], m.kind)}" for m in measures]
    told += [f"loss {best.figures['loss']:.3f}"] if "loss" in best.figures else []
    return f"step {best.step}, by validation: {', '.join(told)}"


def dataset_of(run: RunView, split: str | None) -> DatasetImages | None:
    """The images that a run was evaluated on; None where nothing says which they are."""
    source = run.splits[split].scores.get("source", {}) if split else {}
    directory = source.get("data") or run.setting("data.dir", "")
    return DatasetImages(directory, split) if split and directory else None


def _about(run: RunView) -> list[str]:
    steps = int(run.setting("steps", 0))
    so_far = f"{run.reached:,} of " if run.reached < steps else ""
    facts = [
        f"{so_far}{steps:,} steps" if steps else "",
        f"{run.setting('batch_size')} images a step" if run.setting("batch_size") else "",
        f"seed {run.setting('seed')}" if run.setting("seed") is not None else "",
        f"data {run.setting('data.dir')}" if run.setting("data.dir") else "",
    ]
    return [fact for fact in facts if fact]


def _notes(columns: Mapping[str, ScoredSplit]) -> list[str]:
    """The shuffle control, and why values are missing."""
    notes, skipped = [], collections.defaultdict[str, dict[str, None]](dict)
    for name, found in columns.items():
        control = found.scores.get("control") or {}
        ratio, value = lookup(control, "ratio"), lookup(control, "CIDEr_shuffled")
        if ratio is not None and value is not None:
            notes.append(
                f"Does it look? With images shuffled against captions, {name}'s CIDEr is "
                f"{value:.3f}, {100 * ratio:.0f} % of its value."
            )
        for metric, why in (found.scores.get("skipped") or {}).items():
            skipped[str(why)][metric] = None
    return notes + [f"{', '.join(names)} not computed: {why}." for why, names in skipped.items()]


def _event(event: Mapping[str, Any]) -> str:
    """What a guard saw or did."""
    if event.get("rollback"):
        place = f"the checkpoint of step {event.get('to')}" if event.get("to") else "the start"
        return f"back to {place}, learning rate × {event.get('lr_scale')}"
    return f"guard {event.get('guard')}: {event.get('text')} ({event.get('action')})"


def _origin(
    run: RunView, parent: RunView | None, columns: Mapping[str, ScoredSplit]
) -> dict[str, Any]:
    """Where everything came from; what is not known is empty."""
    info, named = run.info, run.info.get("parent") or {}
    counts, versions = info.get("parameters") or {}, info.get("versions") or {}
    sources = {name: found.scores.get("source") or {} for name, found in columns.items()}
    weights = {
        f"weights: {part}": _joined(values.get("path"), short(values.get("fingerprint") or ""))
        for part, values in (info.get("base") or {}).items()
        if isinstance(values, Mapping)
    }
    learn = f"{counts.get('total', 0):,}, of which {counts.get('trained', 0):,} learn"
    captions = [
        f"{name}: {source.get('method')}, step {source.get('step')}"
        for name, source in sources.items()
        if source.get("method")
    ]
    return {
        "run": run.path,
        "began from": _joined(
            (parent.path if parent else None) or named.get("run") or named.get("path"),
            f"(step {named['step']})" if "step" in named else None,
        ),
        "reward": info.get("reward_signature"),
        **weights,
        "parameters": learn if counts.get("total") else None,
        "metrics": next((found.scores.get("signature") for found in columns.values()), None),
        "captions": ", ".join(captions),
        "devices": info.get("devices"),
        "a step's time": step_parts(run.series),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "begun": info.get("created"),
    }


def step_parts(series: Series) -> str:
    """What the devices did in the step that was last traced, such as "encode 3 %, rollout 52 %,
    update 45 %"; "" where none was."""
    parts = {name.removeprefix("train/").removesuffix("_share"): name for name in STEP_PARTS}
    last = {part: series[name][-1][1] for part, name in parts.items() if series.get(name)}
    return ", ".join(f"{part} {100 * share:.0f} %" for part, share in last.items())


def _joined(*words: Any) -> str:
    return " ".join(str(word) for word in words if word)


def flat(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """[("optim.lr", 1e-3), ...] of nested settings."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name, deeper = prefix + key, isinstance(value, Mapping) and depth < _DEEPEST
        found += flat(value, name + ".", depth + 1) if deeper else [(name, value)]
    return found
