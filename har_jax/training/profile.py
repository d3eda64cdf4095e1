"""A trace of some steps, by `jax.profiler`: for TensorBoard's profile plugin, XProf or Perfetto;
and what share of the devices' time each part of a step takes, read out of it.

Every run traces one step of its own for these shares, the third that it makes, when nothing is
compiled any more; the trace is read and thrown away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from har_jax.types import PyTree

log = logging.getLogger(__name__)

SCOPES = {
    "decode": "rollout",
    "encode": "encode",
    "prefill": "prefill",
    "project": "prefill",
    "reward": "",  # there the device waits for the host, which measures it itself
}
"""Named scopes of a step, and the part that each belongs to. What has none of them, and gradients
of all of them, are the update."""

_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*\bop_name="([^"]*)"', re.MULTILINE)
_MODULE = re.compile(r"^HloModule ([\w.-]+)", re.MULTILINE)
_OWN = 3  # of the steps of a process, the one that is traced unasked


class Profile:
    """Traces the steps from `first` to `last`, both included, into a folder.

    Steps are numbered from 1, as in the logs. A run that is resumed between the two traces what is
    left of them. Used as a context around the loop, which ends a trace that is still open.
    """

    def __init__(self, folder: str | os.PathLike[str], first: int, last: int):
        self._folder, self._first, self._last = os.fspath(folder), first, last
        self._tracing = False

    def begin(self, done: int) -> None:
        """Called before the first step of this process, `done` steps after the run's first."""

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step."""
        if self._first <= number <= self._last and not self._tracing:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(
        self, number: int, output: PyTree, program: Callable[[], str] | None = None
    ) -> dict[str, float]:
        """Ends the trace after its last step, once the device has computed what it gave.

        Args:
          program: gives the step's HLO, of which the trace has only the operations' names.

        Returns:
          `step_shares` at the end of a trace, otherwise {}.
        """
        if not self._tracing or number < self._last:
            return {}
        self._end(output)
        self._tell()
        return {} if program is None else step_shares(self._folder, program())

    def _start(self, options: Any = None) -> None:
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._tracing = True

    def _tell(self) -> None:
        log.info("profile of steps %d to %d: %s", self._first, self._last, self._folder)

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self, output: PyTree = None) -> None:
        if self._tracing:
            self._tracing = False
            jax.block_until_ready(output)
            jax.profiler.stop_trace()


class OneStep(Profile):
    """Traces one step of the process, for the shares alone; the trace is not kept."""

    def __init__(self) -> None:
        super().__init__("", 0, 0)
        self._kept: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, done: int) -> None:
        self._first = self._last = done + _OWN

    def after(
        self, number: int, output: PyTree, program: Callable[[], str] | None = None
    ) -> dict[str, float]:
        try:
            return super().after(number, output, program)
        except (RuntimeError, OSError) as error:
            log.debug("no shares of a step: %s", error)
            return {}
        finally:
            if not self._tracing:
                self._throw_away()

    def _start(self, options: Any = None) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a call of Python for each event would slow the step
        try:  # somebody else may be tracing, or no file can be written: a run goes on without
            self._kept = tempfile.TemporaryDirectory(prefix="har_jax-step-")
            self._folder = self._kept.name
            super()._start(options)
        except (RuntimeError, OSError) as error:
            log.debug("no shares of a step: %s", error)

    def _tell(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._throw_away()

    def _throw_away(self) -> None:
        if self._kept is not None:
            self._kept.cleanup()
            self._kept = None


def step_shares(folder: str | os.PathLike[str], program: str) -> dict[str, float]:
    """{"rollout_share": 0.5, ...}: of the time that devices computed a program in a trace, what
    each part took; {} where the trace says nothing of it.

    Args:
      folder: a trace of `jax.profiler`.
      program: HLO of the program, optimised, as text: the names of its operations, and the scopes
        that these come from.
    """
    module = _MODULE.search(program)
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if module is None or not files:
        return {}
    parts = {name: _part_of(scopes) for name, scopes in _OPERATION.findall(program)}
    seconds = dict.fromkeys((*filter(None, SCOPES.values()), "update"), 0.0)
    trace = jax.profiler.ProfileData.from_file(str(files[-1]))
    for line in (line for plane in trace.planes for line in plane.lines):
        for name, duration in _outermost(_operations(line.events, module[1])):
            if part := parts.get(name):
                seconds[part] += duration
    total = sum(seconds.values())
    return {f"{part}_share": s / total for part, s in seconds.items() if s} if total else {}


def _part_of(scopes: str) -> str:
    """The part of a step that an operation belongs to, by where it was written: such as
    jit(step)/jvp(prefill)/while/body/dot_general."""
    if "transpose(" in scopes:
        return "update"
    inside = set(re.findall(r"\w+", scopes))
    return next((part for scope, part in SCOPES.items() if scope in inside), "update")


def _operations(events: Iterable[Any], module: str) -> list[tuple[float, float, str]]:
    """(start, end, name) of the operations of a module among a line's events."""
    found = []
    for event in events:
        stats = dict(event.stats)
        if stats.get("hlo_module") == module and "hlo_op" in stats:
            found.append((event.start_ns, event.end_ns, str(stats["hlo_op"])))
    return found


def _outermost(found: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, duration) of those that lie in no other: a loop's operations lie in the loop."""
    until = -1.0
    for start, end, name in sorted(found, key=lambda one: (one[0], -one[1])):
        if start >= until:
            yield name, end - start
            until = end
