"""Leaving in order when the machine is taken away (SIGTERM)."""

from __future__ import annotations

import logging
import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Preemption:
    """A context in which SIGTERM only raises a flag; the loop then saves and returns.

    In a job of several processes all must stop after the same step: JAX's own preemption service
    agrees on it (`jax.distributed.initialize` starts that service and takes the signal). Outside
    the main thread Python lets nobody handle signals; there SIGTERM does what it did before.
    """

    def __init__(self) -> None:
        self._received = False
        self._alone = jax.process_count() == 1
        self._handles = self._alone and threading.current_thread() is threading.main_thread()
        self._previous: Any = None

    def __enter__(self) -> Preemption:
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        elif self._alone:
            log.info("SIGTERM will not be waited for: this is not the main thread")
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        log.warning("SIGTERM: saving after this step, then leaving")
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to save and leave now; the same answer on every process."""
        if self._alone:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
