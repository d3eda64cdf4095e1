"""Tables of scores over one or more seeds, as text and as Markdown.

    comparison_table({"MLE": [scores, ...], "SCST": [scores, ...]})  # a column each, and the change
    markdown_table({"MLE": [scores, ...], "SCST": [scores, ...]}, MEASURES)  # a row each

`scores` are the contents of `scores.json`. The report and the experiments print the same cells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from har_jax.foreign import shortened

_LARGEST = 1e100  # its square is a number
Kind = Literal["score", "words", "rate"]
Scores = Mapping[str, Any]  # the contents of a scores.json
Columns = Mapping[str, Sequence[Scores]]  # {"MLE": [scores of each seed], "SCST": [...]}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A row: where `scores.json` has it, how it is called and printed, and which way is better."""

    key: str  # "CIDEr", or "health/mean_length"
    label: str
    kind: Kind = "score"
    better: Literal["higher", "lower", "neither"] = "higher"


MEASURES = (
    Measure("CIDEr", "CIDEr"),
    Measure("Bleu_4", "BLEU-4"),
    Measure("ROUGE_L", "ROUGE-L"),
    Measure("METEOR", "METEOR"),
    Measure("SPICE", "SPICE"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("RefCLIPScore", "RefCLIPScore"),
    Measure("PAC-S", "PAC-S"),
    Measure("RefPAC-S", "RefPAC-S"),
    Measure("CHAIRi", "CHAIRi", "score", "lower"),
    Measure("CHAIRs", "CHAIRs", "score", "lower"),
    Measure("health/mean_length", "mean length (words)", "words", "neither"),
    Measure("health/bad_end_rate", "bad endings", "rate", "lower"),
    Measure("health/repetition_rate", "repeated bigrams", "rate", "lower"),
    Measure("health/distinct_captions", "different captions", "rate", "higher"),
    # Fewer unsupported words are no gain where the captions became neutral instead.
    Measure("bias/unsupported_rate", "unsupported gender", "rate", "lower"),
    Measure("bias/neutral_rate", "neutral to gender", "rate", "neither"),
    Measure("bias/recall_male", "men called so", "rate", "higher"),
    Measure("bias/recall_female", "women called so", "rate", "higher"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None with one seed) over n seeds; mean None: no value."""

    mean: float | None
    std: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Row:
    measure: Measure
    cells: tuple[Cell, ...]  # one for each column

    @property
    def change(self) -> float | None:
        """Last column against the first: relative; of a rate the difference."""
        first, last = self.cells[0].mean, self.cells[-1].mean
        if len(self.cells) < 2 or first is None or last is None:
            return None
        if self.measure.kind == "rate":
            return last - first
        # What prints as 0.000 is no base for a percentage.
        return (last - first) / abs(first) if abs(first) >= 5e-4 else None

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """Whether the change is one for the better; "same" also where neither way is better."""
        change = self.change
        if not change or self.measure.better == "neither" or abs(change) < 5e-4:
            return "same"
        return "better" if (change > 0) == (self.measure.better == "higher") else "worse"

    @property
    def texts(self) -> list[str]:
        """The cells as they are printed."""
        return [format_cell(cell, self.measure.kind) for cell in self.cells]

    @property
    def change_text(self) -> str:
        """`+18.9 %`; of a rate the difference, in percentage points: `-0.2 pt`."""
        if self.change is None:
            return "–" if len(self.cells) > 1 else ""
        text = f"{100 * self.change:+.1f}"
        text = text.replace("-0.0", "+0.0").replace("+0.0", "0.0")
        return f"{text} {'pt' if self.measure.kind == 'rate' else '%'}"


def lookup(scores: Scores, key: str) -> float | None:
    """`scores["a"]["b"]` for "a/b"; None if it is missing, null or nothing that a score can be."""
    value: Any = scores
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -_LARGEST < value < _LARGEST:  # nor is it NaN
        return None
    return float(value)


def interval_of(scores: Scores, key: str) -> tuple[float, float] | None:
    """The interval that `scores.json` gives a measure; None where it gives none."""
    found: Any = scores
    for part in ("confidence", "intervals", key):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, list | tuple) or len(found) != 2:
        return None
    low, high = (lookup({"": end}, "") for end in found)
    return None if low is None or high is None else (low, high)


def step_of(scores: Scores) -> str:
    """The step of the run that was scored; "" where that is not known."""
    source = scores.get("source")
    step = source.get("step") if isinstance(source, Mapping) else None
    return "" if step is None else shortened(str(step), 40)


def comparison_rows(columns: Columns, measures: Sequence[Measure] = MEASURES) -> list[Row]:
    """The measures that at least one column has, in their order."""
    rows = []
    for measure in measures:
        cells = tuple(_cell([lookup(s, measure.key) for s in runs]) for runs in columns.values())
        if any(cell.mean is not None for cell in cells):
            rows.append(Row(measure, cells))
    return rows


def _cell(values: Sequence[float | None]) -> Cell:
    """A seed without a value leaves the cell empty: a mean of other seeds would not compare."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return Cell(None, None, len(present))
    mean = sum(present) / len(present)
    if len(present) == 1:
        return Cell(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in present) / (len(present) - 1)
    return Cell(mean, math.sqrt(variance), len(present))


def format_value(value: float | None, kind: Kind) -> str:
    if value is None:
        return "–"
    if kind == "rate":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if kind == "words" else f"{value:.3f}"


def format_cell(cell: Cell, kind: Kind) -> str:
    """`1.203`, or `1.203 ± 0.031` with several seeds."""
    if cell.mean is None or cell.std is None:
        return format_value(cell.mean, kind)
    if kind == "rate":
        return f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f} %"
    return f"{format_value(cell.mean, kind)} ± {format_value(cell.std, kind)}"


def comparison_table(
    columns: Columns, *, title: str = "", extra: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """An aligned text table with a column per name and, with two or more, the change to the last.

    Args:
      columns: {"MLE": [scores of each seed], "SCST": [...]}.
      title: first line; without it the number of images and seeds is told.
      extra: further columns of text, {header: {key of a measure: text}}.
    """
    rows = comparison_rows(columns)
    extra = extra or {}
    header = ["", *columns, *(["change"] if len(columns) > 1 else []), *extra]
    lines = [header]
    for row in rows:
        change = [row.change_text] if len(columns) > 1 else []
        others = [texts.get(row.measure.key, "") for texts in extra.values()]
        lines.append([row.measure.label, *row.texts, *change, *others])
    return _framed(title or _title(columns), lines)


def _framed(title: str, lines: Sequence[Sequence[str]]) -> str:
    """Aligned rows (the first is the header) between rules; the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def text(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "   ".join([first, *rest]).rstrip()

    rule = "─" * max(len(text(line)) for line in lines)
    return "\n".join([title, rule, text(lines[0]), *map(text, lines[1:]), rule])


def rows_table(systems: Columns, title: str, measures: Sequence[Measure] = MEASURES) -> str:
    """As `markdown_table`, but aligned text under a title."""
    rows = comparison_rows(systems, measures)
    lines = [["", *(row.measure.label for row in rows)]]
    lines += [[name, *(row.texts[i] for row in rows)] for i, name in enumerate(systems)]
    return _framed(title, lines)


def markdown_table(systems: Columns, measures: Sequence[Measure]) -> str:
    """A row for each system, a column for each measure that at least one of them has."""
    rows = comparison_rows(systems, measures)
    table = [["|", *(row.measure.label for row in rows)]]
    table += [[f"| {name}", *(row.texts[i] for row in rows)] for i, name in enumerate(systems)]
    header, *lines = (" | ".join(cells) + " |" for cells in table)
    return "\n".join([header, "|---|" + "---:|" * len(rows), *lines])


def differences(scores: Sequence[Scores], others: Sequence[Scores], key: str) -> list[float] | None:
    """A measure of `scores` minus that of `others`, seed by seed; None where a value is missing."""
    pairs = [(lookup(a, key), lookup(b, key)) for a, b in zip(scores, others, strict=True)]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    return found if len(found) == len(pairs) else None


def contrast(systems: Columns, name: str, other: str, measures: Sequence[Measure]) -> str:
    """`A against B: CIDEr +0.103 (+0.080 to +0.120), ...`: means and ranges over the seeds."""
    parts = []
    for measure in measures:
        values = differences(systems[name], systems[other], measure.key)
        if not values:
            continue
        scale, form, unit = (100, "+.1f", " pt") if measure.kind == "rate" else (1, "+.3f", "")
        mean, low, high = (
            format(scale * x, form) for x in (sum(values) / len(values), min(values), max(values))
        )
        spread = f" ({low}{unit} to {high}{unit})" if len(values) > 1 else ""
        parts.append(f"{measure.label} {mean}{unit}{spread}")
    return f"{name} against {other}: " + ", ".join(parts)


def _title(columns: Columns) -> str:
    runs = [scores for column in columns.values() for scores in column]
    images = {int(n) for scores in runs if (n := lookup(scores, "n_images")) is not None}
    seeds = max((len(column) for column in columns.values()), default=0)
    parts = [f"{n} images" for n in sorted(images)[:1]] if len(images) == 1 else []
    if len(images) > 1:
        parts.append("different numbers of images: not comparable")
    if seeds > 1:
        parts.append(f"{seeds} seeds, mean ± std")
    steps = {name: dict.fromkeys(map(step_of, own)) for name, own in columns.items()}
    told = [f"{name} of step {' and '.join(map(str, of))}" for name, of in steps.items() if all(of)]
    return ", ".join([*parts, *told]) or "scores"


def against_table(against: Mapping[str, Any]) -> str:
    """A paired comparison, `scores.json["against"]`, as text: the difference and its p-value."""
    labels = {measure.key: measure.label for measure in MEASURES}
    lines = [["", "score", "other", "difference", f"{100 * against['level']:g} % interval", "p"]]
    for key, found in against["metrics"].items():
        if key not in labels:
            continue
        low, high = found["interval"]
        smallest = 2 / (against["resamples"] + 1)
        p = f"≤ {smallest:.3f}" if found["p"] <= smallest else f"{found['p']:.3f}"
        values = [format_value(found[of], "score") for of in ("value", "other")]
        difference = [signed(found["difference"]), f"{signed(low)} – {signed(high)}"]
        lines.append([labels[key], *values, *difference, p])
    n, resamples = against["n_images"], against["resamples"]
    title = f"against {against['name']}: {n} images, paired bootstrap, {resamples} resamples"
    return _framed(title, lines)


def signed(value: float) -> str:
    """`+0.012`; what rounds to zero has no sign."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def scores_table(scores: Scores) -> str:
    """One evaluation as text: its figures, its control, what was skipped and what to beware of."""
    source = scores.get("source", {})
    step = step_of(scores)
    named = [str(source[k]) for k in ("stage",) if source.get(k)]
    named += [f"step {step}"] if step else []
    named += [str(source[k]) for k in ("split", "method") if source.get(k)]
    title = f"{', '.join(named)}: {scores['n_images']} images" if named else ""
    confidence = scores.get("confidence") or {}
    intervals = {
        key: f"{format_value(low, 'score')} – {format_value(high, 'score')}"
        for key, (low, high) in confidence.get("intervals", {}).items()
    }
    extra = {f"{100 * confidence['level']:g} % interval": intervals} if intervals else None
    lines = [comparison_table({"score": [scores]}, title=title, extra=extra)]
    if confidence:
        lines.append(f"intervals: {confidence['resamples']} resamples, {confidence['method']}")
    if scores.get("against"):
        lines.append(against_table(scores["against"]))
    control = scores.get("control")
    if control:
        ratio = control["ratio"]
        lines.append(
            f"CIDEr {format_value(control['CIDEr'], 'score')}; with images shuffled against "
            f"captions {format_value(control['CIDEr_shuffled'], 'score')}"
            + (f", {100 * ratio:.1f} % of it" if ratio is not None else "")
        )
    for domain, row in scores.get("domains", {}).items():
        figures = ", ".join(
            f"{m.label} {format_value(row[m.key], 'score')}" for m in MEASURES if m.key in row
        )
        lines.append(f"{domain}: {row['n_images']} images, {figures}")
    reasons: dict[str, list[str]] = {}
    for metric, why in scores.get("skipped", {}).items():
        reasons.setdefault(why, []).append(metric)
    lines += [f"not computed: {', '.join(names)} ({why})" for why, names in reasons.items()]
    lines += [f"warning: {text}" for text in scores.get("warnings", [])]
    return "\n".join(lines)
