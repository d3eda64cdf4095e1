"""Which curves a report shows, from the series of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from har_jax.reports.plot import Line, Plot, make_plot
from har_jax.reports.run_view import Series


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
CHARTS = (
    Chart("Reward", "CIDEr-D", {"train/reward": "samples", "train/reward_greedy": "greedy"}),
    Chart("Validation CIDEr", "", {"val/CIDEr": "greedy captions"}),
    Chart("Training loss", "", {"train/loss": "loss"}),
    Chart("Token accuracy", "", {"train/accuracy": "teacher forcing"}, percent=True),
    Chart("Bad endings", "share of captions", _ENDINGS, percent=True, from_zero=True),
    Chart("Length of rollouts", "tokens", _LENGTHS),
    Chart("Length of validation captions", "words", {"val/mean_length": "greedy captions"}),
    Chart("Entropy of the policy", "nats per token", {"train/entropy": "samples"}),
    Chart("Repeated bigrams", "share", _REPEATED, percent=True, from_zero=True),
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
    others = sorted(series.keys() - {name for chart in CHARTS for name in chart.lines})
    panels = [_panel(Chart(name, "", {name: name}), series, None) for name in others]
    return [panel for panel in panels if panel]


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
