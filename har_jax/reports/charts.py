"""Which curves a report shows, from the series of `metrics.jsonl`."""

from __future__ import annotations

import dataclasses

from har_jax.reports.plot import Line, Plot, make_plot
from har_jax.reports.run_view import Series


@dataclasses.dataclass(frozen=True)
class Chart:
    """A panel: its title, unit, and lines as (series, label); absent series are left out."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    percent: bool = False
    from_zero: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart with data, as the template takes it; a single line needs no legend."""

    title: str
    unit: str
    legend: bool
    plot: Plot


CHARTS = (
    Chart("Reward", "CIDEr-D", (("train/reward", "samples"), ("train/reward_greedy", "greedy"))),
    Chart("Validation CIDEr", "", (("val/CIDEr", "greedy captions"),)),
    Chart("Training loss", "", (("train/loss", "loss"),)),
    Chart("Token accuracy", "", (("train/accuracy", "teacher forcing"),), percent=True),
    Chart(
        "Bad endings",
        "share of captions",
        (
            ("train/bad_end_rate", "samples"),
            ("train/bad_end_rate_greedy", "greedy"),
            ("val/bad_end_rate", "validation"),
        ),
        percent=True,
        from_zero=True,
    ),
    Chart(
        "Length of rollouts",
        "tokens",
        (("train/length", "samples"), ("train/length_greedy", "greedy")),
    ),
    Chart("Length of validation captions", "words", (("val/mean_length", "greedy captions"),)),
    Chart("Entropy of the policy", "nats per token", (("train/entropy", "samples"),)),
    Chart(
        "Repeated bigrams",
        "share",
        (("train/repetition_rate", "samples"), ("val/repetition_rate", "validation")),
        percent=True,
        from_zero=True,
    ),
)


def main_charts(series: Series, parent: Series, parent_name: str) -> list[Panel]:
    """The panels of `CHARTS` that have data; validation CIDEr next to the parent's best."""
    best = max((value for _, value in parent.get("val/CIDEr", [])), default=None)
    reference = None if best is None else (f"best of {parent_name}", best)
    panels = [
        _panel(chart, series, reference if chart.lines[0][0] == "val/CIDEr" else None)
        for chart in CHARTS
    ]
    return [panel for panel in panels if panel]


def other_charts(series: Series) -> list[Panel]:
    """Everything else that was logged, one panel each."""
    shown = {name for chart in CHARTS for name, _ in chart.lines}
    panels = [
        _panel(Chart(name, "", ((name, name),)), series, None)
        for name in sorted(series)
        if name not in shown
    ]
    return [panel for panel in panels if panel]


def _panel(chart: Chart, series: Series, reference: tuple[str, float] | None) -> Panel | None:
    lines = [
        Line(label, series[name], colour=i, smooth=len(series[name]) > 24)
        for i, (name, label) in enumerate(chart.lines)
        if series.get(name)
    ]
    if not lines:
        return None
    plot = make_plot(
        lines,
        description=f"{chart.title} over training steps",
        percent=chart.percent,
        reference=reference,
        from_zero=chart.from_zero,
    )
    return Panel(chart.title, chart.unit, len(chart.lines) > 1, plot)
