"""Leaving in order when the machine is taken away (SIGTERM)."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import types
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """A context in which SIGTERM only raises a flag; the loop then saves and returns. Gives what
    tells after a step whether to save and leave now: the same on every process.

    In a job of several processes all must stop after the same step: JAX's own preemption service
    agrees on it (`jax.distributed.initialize` starts that service and takes the signal). Outside
    the main thread Python lets nobody handle signals; there SIGTERM does what it did before.
    """

    received = False

    def receive(number: int, frame: types.FrameType | None) -> None:
        nonlocal received
        del number, frame
        log.warning("SIGTERM: saving after this step, then leaving")
        received = True

    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
    elif threading.current_thread() is not threading.main_thread():
        log.info("SIGTERM will not be waited for: this is not the main thread")
        yield lambda _: False
    else:
        previous = signal.signal(signal.SIGTERM, receive)
        try:
            yield lambda _: received
        finally:
            signal.signal(signal.SIGTERM, previous)
