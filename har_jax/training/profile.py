"""A trace of some steps, by `jax.profiler`: for TensorBoard's profile plugin, XProf or Perfetto."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import jax

from har_jax.types import PyTree

log = logging.getLogger(__name__)


class Profile:
    """Traces the steps from `first` to `last`, both included, into a folder.

    Steps are numbered from 1, as in the logs. A run that is resumed between the two traces what is
    left of them. Used as a context around the loop, which ends a trace that is still open.
    """

    def __init__(self, folder: str | os.PathLike[str], first: int, last: int):
        self._folder, self._first, self._last = os.fspath(folder), first, last
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step."""
        if self._first <= number <= self._last and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, output: PyTree) -> None:
        """Ends the trace after its last step, once the device has computed what it gave."""
        if self._tracing and number >= self._last:
            jax.block_until_ready(output)
            self.__exit__()
            log.info("profile of steps %d to %d: %s", self._first, number, self._folder)

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
