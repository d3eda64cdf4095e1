"""The steps between two logs: their figures, what they waited for, how fast they were."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from har_jax.figures import Figure, reduce
from har_jax.training.step import StepOutput

MAX_IN_FLIGHT = 2
"""Steps dispatched ahead of the device; more would only queue up batches in memory."""


class Window:
    """Steps since the last log. Only finished ones are read: the device never waits for it."""

    closed = 0  # steps of the window before

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._figures: list[dict[str, Figure]] = []
        self._arrays: dict[str, Any] = {}  # of the last step
        self._began = time.perf_counter()
        self._waited = 0.0

    def waiting_for(self, make: Callable[[], Any]) -> Any:
        """What `make` returns; the time that it takes is counted as waiting for data."""
        began = time.perf_counter()
        made = make()
        self._waited += time.perf_counter() - began
        return made

    def add(self, output: StepOutput) -> None:
        self._figures.append(output.figures)
        self._arrays = output.arrays
        if len(self._figures) > MAX_IN_FLIGHT:
            jax.block_until_ready(self._figures[-1 - MAX_IN_FLIGHT]["loss"])

    def close(self, batch_size: int) -> tuple[dict[str, float], dict[str, Any]]:
        """The figures of all steps, speed and memory among them, and the last step's arrays."""
        figures, arrays, count = reduce(self._figures), self._arrays, len(self._figures)
        seconds = time.perf_counter() - self._began
        figures["steps_per_second"] = count / seconds
        figures["images_per_second"] = count * batch_size / seconds
        if "tokens" in self._figures[0]:
            totals = jax.device_get([step["tokens"][0] for step in self._figures])
            figures["tokens_per_second"] = float(sum(totals)) / seconds
        figures["data_wait"] = self._waited / seconds  # share of the time
        figures |= _device_memory()
        self.closed = count
        self.restart()
        return figures, arrays


def _device_memory() -> dict[str, float]:
    """GiB in use and at most so far, of the fullest device of this process; {} on CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        figure: max(s[name] for s in stats) / 2**30
        for figure, name in names.items()
        if all(name in s for s in stats)
    }
