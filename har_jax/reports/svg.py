"""Line charts as inline SVG: no library, no script, colours from the page's style sheet.

A chart is drawn in a fixed coordinate system and scales with its container. Classes: `grid`,
`axis`, `line s0`, `faint s0` (the values behind a smoothed line), `dot s0`, `hit` (an invisible
circle whose `<title>` is the tooltip), `reference`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 440, 210
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


def line_chart(
    lines: Sequence[Line],
    *,
    description: str,
    percent: bool = False,
    reference: tuple[str, float] | None = None,
    from_zero: bool = False,
) -> str:
    """An `<svg>` of lines over steps.

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
    ticks_y = nice_ticks(min(ys), max(ys), 5)
    low, high = min(ticks_y[0], min(ys)), max(ticks_y[-1], max(ys))
    first, last = min(xs), max(xs)
    tick = _tick_format(ticks_y, percent)

    def number(y: float) -> str:
        return f"{100 * y:.3g} %" if percent else f"{y:.4g}"

    def px(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        share = (y - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">']
    for y in ticks_y:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y):.1f}" '
            f'y2="{py(y):.1f}"/><text class="axis" text-anchor="end" x="{_LEFT - 6}" '
            f'y="{py(y) + 3.5:.1f}">{escape(tick(y))}</text>'
        )
    for x in _step_ticks(first, last):
        anchor = "end" if px(x) > WIDTH - _RIGHT - 12 else "middle"
        parts.append(
            f'<text class="axis" text-anchor="{anchor}" x="{px(x):.1f}" y="{HEIGHT - 8}">'
            f"{_step_text(x)}</text>"
        )
    if reference:
        label, y = reference
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y):.1f}" '
            f'y2="{py(y):.1f}"/><text class="axis" x="{_LEFT + 4}" y="{py(y) - 4:.1f}">'
            f"{escape(label)} {escape(number(y))}</text>"
        )
    for line in lines:
        parts += _line(line, px, py, number)
    return "".join([*parts, "</svg>"])


def _line(
    line: Line,
    px: Callable[[float], float],
    py: Callable[[float], float],
    number: Callable[[float], str],
) -> list[str]:
    shown = smoothed(line.points) if line.smooth else list(line.points)
    colour = f"s{line.colour}"
    parts = []
    if line.smooth:
        parts.append(f'<polyline class="faint {colour}" points="{_path(line.points, px, py)}"/>')
    if len(shown) > 1:
        parts.append(f'<polyline class="line {colour}" points="{_path(shown, px, py)}"/>')
    if len(shown) <= 12:  # a line over few points would hide which ones were measured
        parts += [
            f'<circle class="dot {colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>'
            for x, y in shown
        ]
    stride = math.ceil(len(shown) / _MAX_HITS)
    for (x, y), (_, value) in list(zip(shown, line.points, strict=True))[::stride]:
        parts.append(
            f'<circle class="hit {colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="7"><title>'
            f"{escape(line.label)}, step {x:,.0f}: {escape(number(value))}</title></circle>"
        )
    return parts


def _path(points: Points, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A centred mean over a tenth of the points: shows the course without delaying it."""
    half = max(1, len(points) // 20)
    found = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        found.append((x, sum(y for _, y in window) / len(window)))
    return found


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
