"""`report.html` of a run: what it scored, what it writes below images, and how it got there.

One file without links: styles, charts and images are inside. What does not exist yet (evaluations,
images, a parent) is left out, so a report can be written at any time.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from har_jax.files import write_bytes
from har_jax.reports.charts import main_charts, other_charts
from har_jax.reports.gallery import GROUPS, gallery, stories
from har_jax.reports.run_view import DatasetImages, RunView, ScoredSplit, common_split, read_view
from har_jax.reports.style import CSS, picker_css
from har_jax.reports.tables import Row, comparison_rows, format_cell, format_change, lookup

_TILES = ("CIDEr", "Bleu_4", "CLIPScore", "health/bad_end_rate")


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
      UserError: there is no such run directory.
    """
    run = read_view(run_dir)
    parent = None
    named = run.info.get("parent") or {}
    other = named.get("run") or named.get("path")
    if compare_with is not None:
        parent = read_view(compare_with)
    elif other and pathlib.Path(other).is_dir():
        parent = read_view(other)
    path = pathlib.Path(out) if out else run.path / "report.html"
    write_bytes(path, render(run, parent, n_images).encode())
    return path


def render(run: RunView, parent: RunView | None, n_images: int) -> str:
    """The page as text."""
    runs = [parent, run] if parent else [run]
    names = _column_names(runs)
    split = common_split([run, *([parent] if parent else [])])
    columns = {
        name: view.splits[split]
        for name, view in zip(names, runs, strict=True)
        if split and split in view.splits
    }
    images = _dataset(run, split)
    sections = [
        _header(run, parent),
        _scores(columns, split),
        gallery(columns, images, n_images) if columns else "",
        _curves(run, parent, names[0]),
        stories(run, images if split == run.setting("data.val_split") else None),
        _details(run, parent, columns),
    ]
    title = escape(_title(run, parent))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}{picker_css(list(GROUPS[True]))}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _column_names(runs: Sequence[RunView]) -> list[str]:
    stages = [run.stage.upper() for run in runs]
    return stages if len(set(stages)) == len(runs) else [run.path.name for run in runs]


def _dataset(run: RunView, split: str | None) -> DatasetImages | None:
    source = run.splits[split].scores.get("source", {}) if split else {}
    directory = source.get("data") or run.setting("data.dir", "")
    return DatasetImages(directory, split) if split and directory else None


def _title(run: RunView, parent: RunView | None) -> str:
    stages = {"mle": "Maximum likelihood", "scst": "Self-critical training"}
    title = stages.get(run.stage, run.stage)
    return f"{title}: {run.path.resolve().name}" + (f", after {parent.path.name}" if parent else "")


def _header(run: RunView, parent: RunView | None) -> str:
    facts = [
        f"{int(run.setting('steps')):,} steps" if run.setting("steps") else "",
        f"{run.setting('batch_size')} images a step" if run.setting("batch_size") else "",
        f"seed {run.setting('seed')}" if run.setting("seed") is not None else "",
        f"data {run.setting('data.dir')}" if run.setting("data.dir") else "",
    ]
    line = " · ".join(escape(fact) for fact in facts if fact)
    return f'<h1>{escape(_title(run, parent))}</h1>\n<p class="soft">{line}</p>\n'


def _scores(columns: Mapping[str, ScoredSplit], split: str | None) -> str:
    if not columns:
        return (
            '<p class="panel soft">Not evaluated yet: <code>python -m har_jax.evaluate '
            "--checkpoint=RUN --out=RUN/eval/test</code> adds scores and images.</p>\n"
        )
    rows = comparison_rows({name: [found.scores] for name, found in columns.items()})
    shown = {row.measure.key: row for row in rows}
    tiles = "".join(_tile(shown[key], list(columns)) for key in _TILES if key in shown)
    body = "".join(_table_row(row) for row in rows)
    header = "".join(f"<th>{escape(name)}</th>" for name in columns)
    change = "<th>change</th>" if len(columns) > 1 else ""
    sizes = {found.scores.get("n_images") or len(found.rows) for found in columns.values()}
    size = " and ".join(f"{n:,}" for n in sorted(sizes))
    return (
        f'<div class="tiles">{tiles}</div>\n'
        f"<h2>Scores on {escape(str(split))}, {size} images</h2>\n"
        f'<div class="panel wide"><table><thead><tr><th></th>{header}{change}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n{_notes(columns)}"
    )


def _tile(row: Row, names: Sequence[str]) -> str:
    last = format_cell(row.cells[-1], row.measure.kind)
    before = ""
    if len(row.cells) > 1:
        first = format_cell(row.cells[0], row.measure.kind)
        before = f'<div class="label">{escape(names[0])} {first} {_delta(row)}</div>'
    return (
        f'<div class="panel tile"><div class="label">{escape(row.measure.label)}</div>'
        f'<div class="value">{last}</div>{before}</div>'
    )


def _delta(row: Row) -> str:
    if row.change is None:
        return ""
    arrow = {"better": "▲ ", "worse": "▼ ", "same": ""}[row.verdict]
    if row.measure.better == "lower":  # the arrow shows the way the value went
        arrow = {"better": "▼ ", "worse": "▲ ", "same": ""}[row.verdict]
    return f'<span class="delta {row.verdict}">{arrow}{escape(format_change(row))}</span>'


def _table_row(row: Row) -> str:
    cells = [format_cell(cell, row.measure.kind) for cell in row.cells]
    *others, last = (escape(cell) for cell in cells)
    middle = "".join(f"<td>{cell}</td>" for cell in others)
    change = f"<td>{_delta(row)}</td>" if len(cells) > 1 else ""
    return (
        f'<tr><td>{escape(row.measure.label)}</td>{middle}<td class="last">{last}</td>{change}</tr>'
    )


def _notes(columns: Mapping[str, ScoredSplit]) -> str:
    """Warnings, the shuffle control, and why values are missing."""
    lines = []
    warnings = {w: None for found in columns.values() for w in found.scores.get("warnings", [])}
    lines += [f'<div class="notice">{escape(text)}</div>' for text in warnings]
    for name, found in columns.items():
        control = found.scores.get("control") or {}
        ratio, value = lookup(control, "ratio"), lookup(control, "CIDEr_shuffled")
        if ratio is not None and value is not None:
            lines.append(
                f'<p class="soft small">Does it look? With images shuffled against captions, '
                f"{escape(name)}'s CIDEr is {value:.3f}, {100 * ratio:.0f} % of its value.</p>"
            )
    skipped: dict[str, dict[str, None]] = {}
    for found in columns.values():
        for metric, why in (found.scores.get("skipped") or {}).items():
            skipped.setdefault(str(why), {})[metric] = None
    lines += [
        f'<p class="soft small">{escape(", ".join(metrics))} not computed: {escape(why)}.</p>'
        for why, metrics in skipped.items()
    ]
    return "\n".join(['<div style="margin-top:12px">', *lines, "</div>\n"])


def _curves(run: RunView, parent: RunView | None, parent_name: str) -> str:
    charts = main_charts(run.series, parent.series if parent else {}, parent_name)
    others = other_charts(run.series)
    if not charts and not others:
        return ""
    html = f"<h2>Course of training</h2>\n{_events(run.events)}"
    html += f'<div class="charts">{"".join(charts)}</div>\n'
    if others:
        html += (
            f"<details><summary>everything else that was logged ({len(others)})</summary>"
            f'<div class="charts">{"".join(others)}</div></details>\n'
        )
    return html


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    """What guards saw and did, a line each."""
    lines = []
    for event in events:
        if event.get("rollback"):
            place = f"the checkpoint of step {event.get('to')}" if event.get("to") else "the start"
            lines.append(f"back to {place}, learning rate × {event.get('lr_scale')}")
        else:
            lines.append(f"guard {event.get('guard')}: {event.get('text')} ({event.get('action')})")
    return "".join(
        f'<div class="notice">step {escape(str(event.get("step")))}: {escape(line)}</div>\n'
        for event, line in zip(events, lines, strict=True)
    )


def _details(run: RunView, parent: RunView | None, columns: Mapping[str, ScoredSplit]) -> str:
    """Where everything came from."""
    base = run.info.get("base") or {}
    counts = run.info.get("parameters") or {}
    versions = run.info.get("versions") or {}
    named = run.info.get("parent") or {}
    facts: dict[str, Any] = {
        "run": run.path,
        "began from": " ".join(
            str(x)
            for x in (
                (parent.path if parent else None) or named.get("run") or named.get("path"),
                f"(step {named['step']})" if "step" in named else None,
            )
            if x
        ),
        "reward": run.info.get("reward_signature"),
        **{
            f"weights: {part}": " ".join(
                str(x) for x in (values.get("path"), _short(values.get("fingerprint"))) if x
            )
            for part, values in base.items()
            if isinstance(values, Mapping)
        },
        "parameters": f"{counts['total']:,}, of which {counts.get('trained', 0):,} learn"
        if counts.get("total")
        else None,
        "metrics": next((f.scores.get("signature") for f in columns.values()), None),
        "captions": ", ".join(
            f"{name}: {found.scores['source'].get('method')}, "
            f"step {found.scores['source'].get('step')}"
            for name, found in columns.items()
            if (found.scores.get("source") or {}).get("method")
        ),
        "devices": run.info.get("devices"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "begun": run.info.get("created"),
    }
    items = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd>"
        for name, value in facts.items()
        if value
    )
    settings = "".join(
        f"<dt>{escape(key)}</dt><dd><code>{escape(str(value))}</code></dd>"
        for key, value in _flat(run.config)
    )
    html = f'<h2>Where it came from</h2>\n<div class="panel"><dl>{items}</dl></div>\n'
    if settings:
        html += (
            "<details><summary>the whole configuration</summary>"
            f'<div class="panel"><dl>{settings}</dl></div></details>\n'
        )
    return html


def _short(fingerprint: Any) -> str:
    return str(fingerprint or "").removeprefix("sha256:")[:12]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
