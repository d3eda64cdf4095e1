"""Leaving in order when the machine is taken away (SIGTERM)."""

from __future__ import annotations

import logging
import signal
import types

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Preemption:
    """A context in which SIGTERM only raises a flag; the loop then saves and returns.

    In a job of several processes all must stop after the same step: JAX's own preemption service
    agrees on it (`jax.distributed.initialize` starts that service and takes the signal).
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: object = None

    def __enter__(self) -> Preemption:
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        log.warning("SIGTERM: saving after this step, then leaving")
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to save and leave now; the same answer on every process."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
