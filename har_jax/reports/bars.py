"""Histograms: how many of some whole numbers fall where, laid out in a fixed coordinate system,
which a template draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from har_jax.reports.charts import nice_ticks, tick_format

_WIDTH, _HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 10, 26
_MOST = 30  # bars, each wide enough to be pointed at


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar in the plot's coordinates, its tooltip, and what stands below it ("": nothing)."""

    x: float
    y: float
    width: float
    height: float
    hint: str
    label: str


@dataclasses.dataclass(frozen=True)
class Bars:
    """What is drawn where; `grid` are (y, label)."""

    title: str
    unit: str
    description: str
    grid: Sequence[tuple[float, str]]
    bars: Sequence[Bar]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT


def make_bars(title: str, values: Sequence[int], *, unit: str, of: str) -> Bars:
    """The shares of some counts. What is above 999 of 1,000 of them is in the last bar, so that one
    value far away leaves the others to be seen.

    Args:
      values: one or more whole numbers, none below 0.
      unit: what is counted, such as "words"; `of`: in what, such as "captions".
    """
    array = np.asarray(values)
    low, last = int(array.min()), int(np.quantile(array, 0.999, method="higher"))
    step = -(-(last - low + 1) // _MOST)
    n = -(-(last - low + 1) // step)
    cut = np.minimum((array - low) // step, n - 1)
    shares = np.bincount(cut, minlength=n) / len(array)
    ticks = nice_ticks(0.0, float(shares.max()), 4)
    tick, high = tick_format(ticks, percent=True), ticks[-1]

    def py(share: float) -> float:
        return _HEIGHT - _BOTTOM - share / high * (_HEIGHT - _TOP - _BOTTOM)

    room = (_WIDTH - _LEFT - _RIGHT) / n
    every = -(-n // 10)
    bars = []
    for i, share in enumerate(shares.tolist()):
        first, end = low + i * step, low + (i + 1) * step - 1
        more = i == n - 1 and int(array.max()) > end
        name = f"{first} or more" if more else str(first) if first == end else f"{first} to {end}"
        hint = f"{name} {unit}: {100 * share:.3g} % of {len(array):,} {of}"
        left = _LEFT + i * room + 0.08 * room
        bars.append(
            Bar(
                left,
                py(share),
                0.84 * room,
                py(0) - py(share),
                hint,
                f"{first}+" if more else str(first) if i % every == 0 and n - i > every / 2 else "",
            )
        )
    told = f"{title}: {unit} of {len(array):,} {of}, {array.min()} to {array.max()}"
    return Bars(title, unit, told, [(py(y), tick(y)) for y in ticks], bars)
