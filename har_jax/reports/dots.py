"""Dot charts: a row for each system with its mean, an interval, and its seeds below it, laid out
in a fixed coordinate system, which a template draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from har_jax.reports.charts import nice_ticks, tick_format

_WIDTH, _ROW = 440, 34
_LEFT, _RIGHT, _TOP, _BOTTOM = 112, 62, 8, 26
_LONGEST = 17  # letters of a label that fit on the left


@dataclasses.dataclass(frozen=True)
class Estimate:
    """`seeds` are the single values that the mean is of; `text` ends the row."""

    label: str
    value: float
    text: str
    interval: tuple[float, float] | None = None
    seeds: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Placed:
    """A row in the chart's coordinates; `low` and `high` are equal where there is no interval."""

    label: str
    text: str
    hint: str
    y: float
    x: float
    low: float
    high: float
    seeds: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Dots:
    """What is drawn where; `ticks` are (x, label)."""

    title: str
    description: str
    ticks: Sequence[tuple[float, str]]
    rows: Sequence[Placed]
    height: float
    bottom: float
    width: int = _WIDTH
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT


def make_dots(title: str, estimates: Sequence[Estimate], *, percent: bool = False) -> Dots:
    """Lays out rows. The axis holds all intervals and need not begin at 0: dots have no length.

    Args:
      percent: values are shares, written as percentages.
    """
    ends = [end for e in estimates for end in (*(e.interval or (e.value,)), e.value, *e.seeds)]
    ticks = nice_ticks(min(ends), max(ends), 4)
    low, high = ticks[0], ticks[-1]
    tick = tick_format(ticks, percent)

    def px(x: float) -> float:
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    rows = []
    for i, e in enumerate(estimates):
        first, last = e.interval or (e.value, e.value)
        of = f", {len(e.seeds)} seeds" if len(e.seeds) > 1 else ""
        between = f", {first:.4g} to {last:.4g}" if e.interval else ""
        rows.append(
            Placed(
                e.label if len(e.label) <= _LONGEST else e.label[: _LONGEST - 1] + "…",
                e.text,
                f"{e.label}: {e.value:.4g}{between}{of}",
                _TOP + (i + 0.5) * _ROW,
                px(e.value),
                px(first),
                px(last),
                [px(x) for x in e.seeds] if len(e.seeds) > 1 else [],
            )
        )
    bottom = _TOP + _ROW * len(rows)
    told = "; ".join(row.hint for row in rows)
    marks = [(px(x), tick(x)) for x in ticks]
    return Dots(title, f"{title}: {told}", marks, rows, bottom + _BOTTOM, bottom)
