"""Work by name in processes beside each other, each on cores of its own.

A miniature model is too small for several cores: two trainings, a core each, are done sooner than
one after the other on both (docs/performance.md, "The demo").
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, TypeVar

from har_jax.errors import UserError
from har_jax.hardware import keep_memory
from har_jax.progress import progress

T = TypeVar("T")
_PATIENCE = 30  # seconds that an interrupted process has for removing what it began


def cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def useful() -> int:
    """How many workers there may be: one for each core where JAX computes on them, 1 elsewhere."""
    import jax

    return len(cores()) if jax.default_backend() == "cpu" else 1


def side_by_side(
    work: Callable[[str], T], names: Sequence[str], workers: int
) -> Iterator[tuple[str, T]]:
    """(name, what `work` returns of it) as each is done, `workers` of them at a time, begun in
    their order.

    Processes are spawned, so that `work` and its results have to be picklable.

    Raises:
      UserError: `work` did; the others are stopped.
      RuntimeError: `work` raised anything else, which the process has printed, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()  # of the terminal, for the bars
    own = cores()
    shares = [own[i * len(own) // workers : (i + 1) * len(own) // workers] for i in range(workers)]
    waiting, free = list(names), list(range(workers))
    running: dict[connection.Connection, tuple[str, Any, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                name, place = waiting.pop(0), free.pop(0)
                here, there = context.Pipe(duplex=False)
                given = (work, name, there, shares[place], place, lock)
                process = context.Process(target=_worker, args=given, daemon=True)
                process.start()
                there.close()
                running[here] = name, process, place
            for here in connection.wait(list(running)):
                assert isinstance(here, connection.Connection)
                name, process, place = running.pop(here)
                free.append(place)
                yield name, _received(here, name, process)
    finally:
        _stop([process for _, process, _ in running.values()])


def _received(here: connection.Connection, name: str, process: Any) -> Any:
    try:
        found, error = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of {name} ended with {process.exitcode}") from None
    process.join()
    if error is not None:
        raise error
    return found


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    end = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        process.kill()


def _worker(
    work: Callable[[str], T],
    name: str,
    there: connection.Connection,
    share: Sequence[int],
    place: int,
    lock: Any,
) -> None:
    """Runs in the new process, before JAX counts the cores."""
    # Ctrl-C reaches the parent too, which then asks: once, so that what was begun is removed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    keep_memory()
    progress.set_lock(lock)
    progress.line = place
    try:
        there.send((work(name), None))
    except UserError as error:
        there.send((None, UserError(str(error))))  # a subclass may not be picklable
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        there.send((None, RuntimeError(f"{name}: {error!r:.1000}")))


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)
