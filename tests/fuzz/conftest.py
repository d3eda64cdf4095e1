"""The counts of drawn cases, at the end of a run."""

from __future__ import annotations

import collections
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    areas: dict[str, collections.Counter[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            told_of = report.user_properties if getattr(report, "when", "") == "call" else ()
            for name, told in told_of:
                if name == "fuzz":
                    areas.setdefault(told[0], collections.Counter()).update(told[1])
    if not areas:
        return
    columns = ("accepted", "refused", "tracebacks", "hangs")
    terminalreporter.section("drawn cases")
    total: collections.Counter[str] = sum(areas.values(), collections.Counter())
    for area, counts in [*sorted(areas.items()), ("all", total)]:
        cells = [sum(counts.values()), *(counts[c] for c in columns)]
        names = ("cases", *columns)
        told = ", ".join(f"{n:,} {c}" for n, c in zip(cells, names, strict=True))
        terminalreporter.write_line(f"{area:24} {told}")
