"""Runs drawn cases, and says what became of them.

A case passes if the call returns, or refuses with a `UserError` of one short line (exit code 2 of a
command), within its time and memory, and leaves nothing under a final name after a refusal.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from har_jax.errors import UserError

ALL = os.environ.get("FUZZ") == "all"
ONE = os.environ.get("FUZZ_CASE", "")
SHARE = 40  # one of so many cases is drawn by `make test`
LONGEST_LINE = 1000  # characters of an error
MEMORY = 1 << 30  # bytes that all cases of a test together may add to the process


class Hang(BaseException):
    """The time of a case is over."""


@dataclasses.dataclass
class Case:
    """What is tried, and which paths must not be there after a refusal."""

    call: Callable[[], Any]
    finals: Sequence[pathlib.Path] = ()


Draw = Callable[[random.Random, pathlib.Path], Case]
"""`draw(rng, folder)` makes a case; the folder is empty, and removed afterwards."""


def attempt(
    area: str,
    cases: int,
    draw: Draw,
    tmp_path: pathlib.Path,
    record_property: Callable[[str, Any], None],
    *,
    seconds: int = 30,
) -> None:
    """Draws the cases of an area and fails with the first few faults, each kind once."""
    if ONE:
        name, _, number = ONE.rpartition("/")
        if name == area:
            _replay(area, int(number), draw, tmp_path)
            return
        pytest.skip(f"FUZZ_CASE is {ONE}")
    counts: collections.Counter[str] = collections.Counter()
    faults: dict[str, str] = {}
    before = _peak()
    for number in range(cases if ALL else max(1, cases // SHARE)):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = draw(random.Random(f"{area}/{number}"), folder)
        outcome, fault, told = _outcome(case, seconds)
        counts[outcome] += 1
        if fault:
            faults.setdefault(fault, f"{area}/{number}: {told}")
        shutil.rmtree(folder, ignore_errors=True)
    grown = _peak() - before
    record_property("fuzz", [area, dict(counts), grown])
    if grown > MEMORY:
        faults["memory"] = f"{area}: {grown >> 20} MiB more than before"
    if faults:
        pytest.fail(f"{len(faults)} kinds of fault\n\n" + "\n\n".join(list(faults.values())[:12]))


def command(main: Callable[..., int], argv: Sequence[str]) -> None:
    """Calls a command in this process; exit code 2 is raised as the `UserError` that it was.

    Raises:
      UserError: it refused, in a line.
    """
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(list(argv))
        except SystemExit as error:  # argparse's own
            code = error.code if isinstance(error.code, int) else 2
    lines = [line for line in told.getvalue().splitlines() if "error: " in line]
    if code == 2:
        assert len(lines) == 1, f"{len(lines)} lines of errors: {told.getvalue()[:2000]}"
        raise UserError(lines[0])
    assert code == 0, f"exit code {code}: {told.getvalue()[-2000:]}"


def _outcome(case: Case, seconds: int) -> tuple[str, str, str]:
    """(outcome, kind of fault or "", what to tell of it)."""
    try:
        with _limit(seconds):
            case.call()
        return "accepted", "", ""
    except UserError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST_LINE:
            return "refused", f"line {text[:40]}", f"no short line: {text[:300]!r}"
        if left := [str(path) for path in case.finals if path.exists()]:
            return "refused", f"left {left[0][-20:]}", f"left behind: {left} after: {text}"
        return "refused", "", ""
    except Hang:
        where = "".join(traceback.format_exc().splitlines(keepends=True)[-8:])
        return "hangs", "hang", f"took more than {seconds} s\n{where}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        lines = traceback.format_exc().splitlines()
        told = "\n".join(line[:300] for line in (lines[-14:]))
        return "tracebacks", f"{type(error).__name__} {frame.filename}:{frame.lineno}", told


def _replay(area: str, number: int, draw: Draw, tmp_path: pathlib.Path) -> None:
    case = draw(random.Random(f"{area}/{number}"), tmp_path)
    try:
        print("returned", case.call())
    except UserError as error:
        print("refused:", error)


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def over(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
