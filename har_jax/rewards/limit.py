"""How long a reward may take: one that hangs must not hold a run for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from har_jax.errors import UserError

T = TypeVar("T")

SECONDS = 600.0
GRACE = 5.0
"""Seconds that a call may still take once the run is asked to leave."""


class _Call(threading.Thread, Generic[T]):
    """A call in a thread of its own, which nobody has to wait for, not even at exit."""

    def __init__(self, call: Callable[[], T]):
        super().__init__(daemon=True, name="reward")
        self._call = call
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class Limit:
    """Calls functions, and waits for them so long and no longer.

    Args:
      seconds: that each call may take.
    """

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._last = float("inf")

    def leave(self) -> None:
        """From now on calls have a few seconds only, all together: the run is to end."""
        self._last = time.monotonic() + GRACE

    def call(self, function: Callable[[], T], what: Callable[[], str]) -> T:
        """What the function returns, or raises.

        Args:
          what: which part is being computed, for the error.

        Raises:
          UserError: it took too long. It goes on in its thread; nobody looks at it any more.
        """
        began = time.monotonic()
        call = _Call(function)
        call.start()
        while not call.done.wait(min(0.5, self._seconds)):
            now = time.monotonic()
            if now - began > self._seconds or now > self._last:
                why = "the run is to leave" if now > self._last else "config.scst.reward_timeout"
                raise UserError(
                    f"the reward {what()} had not returned after {now - began:.0f} s ({why}); see "
                    "why it hangs, or raise --config.scst.reward_timeout"
                )
        if call.error is not None:
            raise call.error
        return call.value
