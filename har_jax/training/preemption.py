"""Leaving in order when the machine is taken away, the terminal closed, or Ctrl+C pressed."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK = 0.2  # seconds


class Preemption:
    """What has been asked of this process. Called after a step, it tells whether to save and leave
    now: the same on every process.

    Attributes:
      number: the signal; 0 while there was none.
      unsaved: tells whether leaving at once would lose anything. While it would not, a signal does
        not wait for whatever is being computed or compiled.
      asked: called once, in another thread, when a signal comes.
    """

    def __init__(self) -> None:
        self.number = 0
        self.unsaved: Callable[[], bool] = lambda: False
        self.asked: Callable[[], None] = lambda: None
        self._heeded = False
        self._interrupting = False

    def __call__(self, step: int) -> bool:
        if jax.process_count() > 1:
            reached = multihost_utils.reached_preemption_sync_point(step)
            self.number = signal.SIGTERM if reached else 0
        self._heeded = self.number != 0
        return self._heeded

    def watch(self, signals: int) -> None:
        """Reads signals from a pipe, in a thread: handlers of Python would wait for a call into XLA
        to return, and compiling takes minutes."""
        while True:
            ready, _, _ = select.select([signals], [], [], _LOOK if self.number else None)
            for number in os.read(signals, 64) if ready else b"":
                if number == 0:
                    return
                if number in _SIGNALS:
                    self._receive(number)
            if self.number and not self._heeded and not self.unsaved():
                log.warning("%s: nothing is unsaved, leaving", signal.Signals(self.number).name)
                self._leave(self.number)

    def _receive(self, number: int) -> None:
        if self.number:
            if number == signal.SIGINT and not self._interrupting:
                log.warning("SIGINT again: leaving without saving")
                self._leave(number)
            return
        self.number = number
        if self.unsaved():
            again = "; Ctrl+C again leaves at once" if number == signal.SIGINT else ""
            log.warning(
                "%s: saving after this step, then leaving%s", signal.Signals(number).name, again
            )
        self.asked()

    def _leave(self, number: int) -> None:
        """Ends the process, whatever its main thread is doing; or, where a person sits at Python's
        prompt or a notebook and has pressed Ctrl+C, only what it is doing."""
        if number == signal.SIGINT and (hasattr(sys, "ps1") or "ipykernel" in sys.modules):
            self._heeded = self._interrupting = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
        logging.shutdown()
        os._exit(128 + number)

    def noted(self, *_: Any) -> None:
        """The handler: as a rule, that the signal is written to the pipe is all that is needed."""
        if self._interrupting:
            raise KeyboardInterrupt


@contextlib.contextmanager
def preemption() -> Iterator[Preemption]:
    """A context in which SIGTERM, SIGINT and SIGHUP only raise a flag; the loop then saves and
    returns. While nothing is unsaved they end the process at once, and so does a second SIGINT; at
    Python's prompt and in a notebook SIGINT then raises KeyboardInterrupt as ever.

    In a job of several processes all must stop after the same step: JAX's own preemption service
    agrees on it (`jax.distributed.initialize` starts that service and takes SIGTERM). Outside the
    main thread Python lets nobody handle signals; there they do what they did before.
    """
    asked = Preemption()
    if jax.process_count() > 1:
        yield asked
        return
    if threading.current_thread() is not threading.main_thread():
        log.info("signals will not be waited for: this is not the main thread")
        yield asked
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    # What is ignored stays so: SIGHUP under nohup, SIGINT of a job in the background.
    heard = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, asked.noted) for number in heard}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=asked.watch, args=(read,), daemon=True, name="signals")
    watcher.start()
    _watching.add(write)
    try:
        yield asked
    finally:
        _watching.discard(write)
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(write, b"\0")
        watcher.join()
        os.close(read)
        os.close(write)


_watching: set[int] = set()


def _in_child() -> None:
    """A forked process must not write its own signals into its parent's pipe."""
    if _watching:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
