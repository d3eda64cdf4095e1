"""Progress of long work: a bar where a person watches, two lines where a log is kept.

A bar is drawn when stderr is a terminal. Otherwise one line says what began and one what it took,
so that a log of a night's run is not made of carriage returns. `HAR_PROGRESS=1` forces bars,
`HAR_PROGRESS=0` silences both.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A context manager that counts: `with Progress("train", total=100) as p: p.advance()`.

    Args:
      label: what is being done, e.g. "writing train".
      total: how many units there are, where known.
      unit: what is counted, e.g. "images".
    """

    def __init__(self, label: str, *, total: int | None = None, unit: str = "it"):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._bar = None
        self._mode = _mode()

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._mode == "bar":
            from tqdm import tqdm  # not needed where no one looks

            self._bar = tqdm(
                total=self.total,
                desc=self.label,
                unit=f" {self.unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.2,
            )
        elif self._mode == "log":
            of = f" ({self.total} {self.unit})" if self.total is not None else ""
            print(f"{self.label}{of} ...", file=sys.stderr, flush=True)
        return self

    def advance(self, count: int = 1, **figures: object) -> None:
        """Counts `count` more; `figures` (e.g. loss="1.23") are shown beside the bar."""
        self.done += count
        if self._bar is not None:
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(count)

    def say(self, line: str) -> None:
        """Prints a line to stderr without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._mode == "log":
            end = "stopped after" if kind else "done,"
            took = time.monotonic() - self._began
            print(
                f"{self.label}: {end} {self.done} {self.unit} in {took:.1f} s",
                file=sys.stderr,
                flush=True,
            )


def track(
    items: Iterable[T], label: str, *, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Yields the items and shows how far along they are."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(label, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _mode() -> str:
    """`"bar"`, `"log"` or `"silent"`."""
    wish = os.environ.get("HAR_PROGRESS")
    if wish == "0":
        return "silent"
    return "bar" if wish == "1" or sys.stderr.isatty() else "log"
