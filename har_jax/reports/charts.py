"""Which curves a report shows, from the series of `metrics.jsonl`."""

from __future__ import annotations

import dataclasses
from html import escape

from har_jax.reports.run_view import Series
from har_jax.reports.svg import Line, line_chart


@dataclasses.dataclass(frozen=True)
class Chart:
    """A panel: its title, unit, and lines as (series, label); absent series are left out."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    percent: bool = False
    from_zero: bool = False


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


def main_charts(series: Series, parent: Series, parent_name: str) -> list[str]:
    """The panels of `CHARTS` that have data; validation CIDEr next to the parent's best."""
    found = []
    for chart in CHARTS:
        reference = None
        if chart.lines[0][0] == "val/CIDEr" and parent.get("val/CIDEr"):
            best = max(value for _, value in parent["val/CIDEr"])
            reference = (f"best of {parent_name}", best)
        html = _panel(chart, series, reference)
        if html:
            found.append(html)
    return found


def other_charts(series: Series) -> list[str]:
    """Everything else that was logged, one panel each."""
    shown = {name for chart in CHARTS for name, _ in chart.lines}
    return [
        _panel(Chart(name, "", ((name, name),)), series, None)
        for name in sorted(series)
        if name not in shown
    ]


def _panel(chart: Chart, series: Series, reference: tuple[str, float] | None) -> str:
    lines = [
        Line(label, series[name], colour=i, smooth=len(series[name]) > 24)
        for i, (name, label) in enumerate(chart.lines)
        if series.get(name)
    ]
    if not lines:
        return ""
    svg = line_chart(
        lines,
        description=f"{chart.title} over training steps",
        percent=chart.percent,
        reference=reference,
        from_zero=chart.from_zero,
    )
    legend = ""
    if len(chart.lines) > 1:
        legend = "".join(
            f'<span><i style="background:var(--s{line.colour})"></i>{escape(line.label)}</span>'
            for line in lines
        )
    unit = f' <span class="soft small">{escape(chart.unit)}</span>' if chart.unit else ""
    return (
        f'<div class="panel"><h3>{escape(chart.title)}{unit}</h3>'
        f'<div class="legend">{legend}</div>{svg}</div>'
    )
