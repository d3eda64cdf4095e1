"""Line charts: which curves a report shows, from the series of `metrics.jsonl`, and where their
points lie in a fixed coordinate system, which a template draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from har_jax.reports.run_view import Series

_WIDTH, _HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 26
_LETTER = 7  # of a tick's label, at most
COLOURS = 8
"""Lines of one chart that can be told apart: classes s0 to s7 of the style sheet."""
_MAX_HITS = 80  # tooltips per line: enough to read it, few enough for a small page

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """`colour` is the n of the class `s<n>`; a smoothed line keeps its values faintly behind it."""

    label: str
    points: Points
    colour: int = 0
    smooth: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A line in the plot's coordinates: SVG paths ("" if there is none), dots, and tooltips."""

    label: str
    colour: int
    faint: str
    path: str
    dots: Points
    hits: Sequence[tuple[float, float, str]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """What is drawn where; `grid` are (y, label), `steps` (x, label), `reference` (y, label)."""

    description: str
    grid: Sequence[tuple[float, str]]
    steps: Sequence[tuple[float, str]]
    reference: tuple[float, str] | None
    lines: Sequence[Drawn]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT


def make_plot(
    lines: Sequence[Line],
    description: str,
    percent: bool = False,
    reference: tuple[str, float] | None = None,
    from_zero: bool = False,
) -> Plot:
    """Lays out lines over steps.

    Args:
      description: for readers who do not see the chart.
      percent: y values are shares, written as percentages.
      reference: (label, y) of a dashed horizontal line.
      from_zero: the y axis begins at 0.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [reference[1]] if reference else []
    ys += [0.0] if from_zero else []
    if from_zero and max(ys) == 0:  # an axis upward of what never happened
        ys.append(0.01 if percent else 1.0)
    ticks = nice_ticks(min(ys), max(ys), 5)
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))
    first, last = min(xs), max(xs)
    tick = tick_format(ticks, percent)
    left = max(_LEFT, 12 + _LETTER * max(len(tick(y)) for y in ticks))

    def number(y: float) -> str:
        return f"{100 * y:.3g} %" if percent else f"{y:.4g}"

    def px(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (_WIDTH - left - _RIGHT)

    def py(y: float) -> float:
        share = (y - low) / (high - low) if high > low else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def path(points: Points) -> str:
        return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)

    def draw(line: Line) -> Drawn:
        shown = smoothed(line.points) if line.smooth else list(line.points)
        pairs = list(zip(shown, line.points, strict=True))
        return Drawn(
            line.label,
            line.colour,
            faint=path(line.points) if line.smooth else "",
            path=path(shown) if len(shown) > 1 else "",
            # A line over few points would hide which ones were measured.
            dots=[(px(x), py(y)) for x, y in shown] if len(shown) <= 12 else [],
            hits=[
                (px(x), py(y), f"{line.label}, step {x:,.0f}: {number(value)}")
                for (x, y), (_, value) in pairs[:: math.ceil(len(pairs) / _MAX_HITS)]
            ],
        )

    dashed = (py(reference[1]), f"{reference[0]} {number(reference[1])}") if reference else None
    grid = [(py(y), tick(y)) for y in ticks]
    steps = [
        (px(x), f"{x / 1000:g}k" if x >= 10_000 and x % 100 == 0 else f"{x:g}")
        for x in _step_ticks(first, last)
    ]
    return Plot(description, grid, steps, dashed, [draw(line) for line in lines], left=left)


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A centred mean over a tenth of the points: shows the course without delaying it."""
    half = max(1, len(points) // 20)
    windows = (points[max(0, i - half) : i + half + 1] for i in range(len(points)))
    means = (sum(y for _, y in window) / len(window) for window in windows)
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    if high <= low:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(begin, end + 1)]


def tick_format(ticks: Sequence[float], percent: bool) -> Callable[[float], str]:
    """As many decimals for all as the distance between two ticks needs."""
    scale = 100 if percent else 1
    step = scale * (ticks[1] - ticks[0])
    decimals = next((d for d in range(9) if abs(step - round(step, d)) < 1e-3 * step), 9)
    if scale * max(abs(ticks[0]), abs(ticks[-1])) >= 1e5 or decimals > 5:
        return lambda y: f"{scale * y:.3g}"
    return lambda y: f"{scale * y:.{decimals}f}" + (" %" if percent else "")


def _step_ticks(first: float, last: float) -> list[float]:
    if last <= first:
        return [first]
    inside = [x for x in nice_ticks(first, last, 5) if first <= x <= last]
    return inside or [first, last]


class Chart(NamedTuple):
    """A panel: its title, unit, and lines as {series: label}; absent series are left out."""

    title: str
    unit: str
    lines: Mapping[str, str]
    percent: bool = False
    from_zero: bool = False


class Panel(NamedTuple):
    """A chart with data, as the template takes it; a single line needs no legend."""

    title: str
    unit: str
    legend: bool
    plot: Plot


_ENDINGS = {
    "train/bad_end_rate": "samples",
    "train/bad_end_rate_greedy": "greedy",
    "val/bad_end_rate": "validation",
}
_LENGTHS = {"train/length": "samples", "train/length_greedy": "greedy"}
_REPEATED = {"train/repetition_rate": "samples", "val/repetition_rate": "validation"}
_TIMES = {"train/data_wait": "waiting for data", "train/reward_share": "reward"}
STEP_PARTS = tuple(f"train/{part}_share" for part in ("encode", "prefill", "rollout", "update"))
"""Of the devices' time in one step that was traced: told in words, for a curve has more points."""
CHARTS = (
    Chart("Reward", "CIDEr-D", {"train/reward": "samples", "train/reward_greedy": "greedy"}),
    Chart("Validation CIDEr", "", {"val/CIDEr": "greedy captions"}),
    Chart("Training loss", "", {"train/loss": "loss"}),
    Chart("Validation loss", "nats per token", {"val/loss": "references"}),
    Chart("Token accuracy", "", {"train/accuracy": "teacher forcing"}, percent=True),
    Chart("Bad endings", "share of captions", _ENDINGS, percent=True, from_zero=True),
    Chart("Length of rollouts", "tokens", _LENGTHS),
    Chart("Length of validation captions", "words", {"val/mean_length": "greedy captions"}),
    Chart("Entropy of the policy", "nats per token", {"train/entropy": "samples"}),
    Chart("Repeated bigrams", "share", _REPEATED, percent=True, from_zero=True),
    Chart("Distance to the MLE policy", "KL, nats per token", {"train/kl": "samples"}),
    Chart("Learning rate", "", {"train/learning_rate": "learning rate"}, from_zero=True),
    Chart("Throughput", "images per second", {"train/images_per_second": "images"}, from_zero=True),
    Chart("Shares of time", "of a step", _TIMES, percent=True, from_zero=True),
    Chart("Use of the devices", "of their peak", {"train/mfu": "mfu"}, percent=True),
)


def main_charts(series: Series, parent: Series, parent_name: str) -> list[Panel]:
    """The panels of `CHARTS` that have data; validation CIDEr next to the parent's best."""
    best = max((value for _, value in parent.get("val/CIDEr", [])), default=None)
    reference = None if best is None else (f"best of {parent_name}", best)
    panels = [
        _panel(chart, series, reference if "val/CIDEr" in chart.lines else None) for chart in CHARTS
    ]
    return [panel for panel in panels if panel]


def other_charts(series: Series) -> list[Panel]:
    """Everything else that was logged, one panel each."""
    known = {name for chart in CHARTS for name in chart.lines}
    others = sorted(series.keys() - known - {*STEP_PARTS})
    panels = [_panel(Chart(name, "", {name: name}), series, None) for name in others]
    return [panel for panel in panels if panel]


def compared_charts(runs: Mapping[str, Series]) -> tuple[list[Panel], list[Panel]]:
    """Each series that a run has, as a panel with a line for each run that has it: those of
    `CHARTS`, and all others."""
    named = {
        name: (chart, label if len(chart.lines) > 1 else "")
        for chart in CHARTS
        for name, label in chart.lines.items()
    }
    there = {name for series in runs.values() for name, points in series.items() if points}
    known = [_compared(runs, name, *of) for name, of in named.items() if name in there]
    others = sorted(there - named.keys() - {*STEP_PARTS})
    return known, [_compared(runs, name, Chart(name, "", {}), "") for name in others]


def _compared(runs: Mapping[str, Series], name: str, chart: Chart, label: str) -> Panel:
    lines = [
        Line(run, series[name], colour=i, smooth=len(series[name]) > 24)
        for i, (run, series) in enumerate(runs.items())
        if series.get(name)
    ]
    title = f"{chart.title}: {label}" if label else chart.title
    told = f"{title} of {', '.join(line.label for line in lines)} over training steps"
    plot = make_plot(lines, told, chart.percent, None, chart.from_zero)
    return Panel(title, chart.unit, True, plot)


def _panel(chart: Chart, series: Series, reference: tuple[str, float] | None) -> Panel | None:
    lines = [
        Line(label, series[name], colour=i, smooth=len(series[name]) > 24)
        for i, (name, label) in enumerate(chart.lines.items())
        if series.get(name)
    ]
    if not lines:
        return None
    plot = make_plot(
        lines, f"{chart.title} over training steps", chart.percent, reference, chart.from_zero
    )
    return Panel(chart.title, chart.unit, len(chart.lines) > 1, plot)
