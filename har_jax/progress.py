"""Progress of long work: a bar where a person watches, two lines where a log is kept.

A bar is drawn when stderr is a terminal. Otherwise one line says what began and one what it took,
so that the log of a night's run is not made of carriage returns. `HAR_PROGRESS=1` forces bars,
`HAR_PROGRESS=0` silences both.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class progress(tqdm):
    """Counts: `with progress(total=100, desc="train", unit="step") as bar: bar.update(1)`.
    `initial` units were done before, by a run that is resumed."""

    monitor_interval = 0  # every update looks at the clock, so no thread need watch a stuck bar
    line: int | None = None  # below the cursor, in a process whose bar is one of several

    def __init__(
        self, total: int | None = None, *, desc: str = "", unit: str = "it", initial: int = 0
    ):
        wish = os.environ.get("HAR_PROGRESS")
        bar = wish == "1" or (wish != "0" and sys.stderr.isatty())
        look: Any = {"dynamic_ncols": True, "mininterval": 0.2, "miniters": 1}
        if self.line is not None:
            look |= {"position": self.line, "leave": False}
        counts: Any = {"total": total, "initial": initial, "desc": desc, "unit": f" {unit}"}
        super().__init__(file=sys.stderr, disable=not bar, **counts, **look)
        self._log = not bar and wish != "0"
        self._what, self._unit, self._before, self._began = desc, unit, initial, time.monotonic()
        if self._log:
            start = f" from {initial}" if initial else ""
            of = f": {total} {unit}" if total is not None else ""
            write(f"{desc}{of}{start} ...")

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable:  # tqdm itself does not count then
            self.n += n or 0
        return super().update(n)

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Prints a line to stderr without tearing whatever bar is being drawn there. A line that
        cannot be kept, the disk of a log being full, ends no work."""
        try:
            super().write(s, file or sys.stderr, end, nolock)
        except BrokenPipeError:
            raise
        except OSError:
            pass

    def close(self) -> None:
        drawn = not self.disable
        super().close()
        if drawn and self.line is not None:
            self.fp.write("\r")  # tqdm leaves the cursor behind the bar that it blanks

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        super().__exit__(kind, value, trace)
        if self._log:
            took = time.monotonic() - self._began
            end = "stopped after" if kind else "done,"
            write(f"{self._what}: {end} {self.n - self._before} {self._unit} in {took:.1f} s")


write = progress.write


def track(
    items: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it"
) -> Iterator[T]:
    """Yields the items and shows how far along they are."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(total, desc=desc, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
