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

T = TypeVar("T")


def write(line: str) -> None:
    """Prints a line to stderr without tearing whatever bar is being drawn there."""
    if _mode() == "bar":
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts: `with progress(total=100, desc="train", unit="step") as bar: bar.update(1)`.

    Args:
      total: how many units there are, where known.
      desc: what is being done, e.g. "writing train".
      unit: what is counted, e.g. "image".
      initial: how many were done before (a resumed run).
    """

    def __init__(
        self, total: int | None = None, *, desc: str = "", unit: str = "it", initial: int = 0
    ):
        self.total, self.desc, self.unit, self.initial = total, desc, unit, initial
        self.done = initial
        self._bar: Any = None
        self._mode = _mode()

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._mode == "bar":
            from tqdm import tqdm  # not needed where no one looks

            self._bar = tqdm(
                total=self.total,
                initial=self.initial,
                desc=self.desc,
                unit=f" {self.unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.2,
            )
        elif self._mode == "log":
            start = f" from {self.initial}" if self.initial else ""
            of = f": {self.total} {self.unit}" if self.total is not None else ""
            print(f"{self.desc}{of}{start} ...", file=sys.stderr, flush=True)
        return self

    def update(self, count: int = 1) -> None:
        """Counts `count` more."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def set_postfix(self, figures: dict[str, Any]) -> None:
        """Figures to show beside the bar, e.g. `{"loss": "1.23"}`."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)

    def write(self, line: str) -> None:
        """Prints a line to stderr without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._mode == "log":
            took = time.monotonic() - self._began
            end = "stopped after" if kind else "done,"
            count = self.done - self.initial
            print(
                f"{self.desc}: {end} {count} {self.unit} in {took:.1f} s",
                file=sys.stderr,
                flush=True,
            )


progress = Progress


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


def _mode() -> str:
    """`"bar"`, `"log"` or `"silent"`."""
    wish = os.environ.get("HAR_PROGRESS")
    if wish == "0":
        return "silent"
    return "bar" if wish == "1" or sys.stderr.isatty() else "log"
