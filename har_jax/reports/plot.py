"""Line charts: from points to places in a fixed coordinate system, which a template draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 26
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
    ticks = nice_ticks(min(ys), max(ys), 5)
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))
    first, last = min(xs), max(xs)
    tick = _tick_format(ticks, percent)

    def number(y: float) -> str:
        return f"{100 * y:.3g} %" if percent else f"{y:.4g}"

    def px(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

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
    steps = [(px(x), _step_text(x)) for x in _step_ticks(first, last)]
    return Plot(description, grid, steps, dashed, [draw(line) for line in lines])


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


def _tick_format(ticks: Sequence[float], percent: bool) -> Callable[[float], str]:
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


def _step_text(x: float) -> str:
    return f"{x / 1000:g}k" if x >= 10_000 and x % 100 == 0 else f"{x:g}"
