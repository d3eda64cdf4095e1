"""The training loop: steps, logs, validation, guards, checkpoints, and an orderly end.

It knows neither objectives nor rewards: it is given a compiled step, an iterator of batches, what
to call for validation, and the guards that may stop it or take it back to its best checkpoint. A
run that is killed at any moment continues from its last checkpoint with the same batches and the
same random numbers, bit for bit on the same devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import METRIC, Checkpoints
from har_jax.config import Config
from har_jax.distributed import put_batch
from har_jax.figures import Figure, reduce
from har_jax.models.functional import Params
from har_jax.progress import progress
from har_jax.training.guards import Guards, Trip
from har_jax.training.loggers import Logger
from har_jax.training.preemption import preemption
from har_jax.training.profile import Profile
from har_jax.training.step import StepOutput, TrainState, TrainStep

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Steps dispatched ahead of the device; more would only queue up batches in memory."""


SHOWN = ("loss", "reward", "reward_greedy", "accuracy", "images_per_second")
"""What a progress bar tells of a log."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not a number, or a reward that failed."""


@runtime_checkable
class Batches(Protocol):
    """An iterator whose state can be saved and restored exactly (`data.pipeline.TrainBatches`)."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...
    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass
class Hooks:
    """What a session adds to the loop."""

    validate: Callable[[Params, int], dict[str, float]] | None = None
    """(trained parameters, step) → validation figures with the key `CIDEr`."""
    summarise: Callable[[Mapping[str, Any], int], dict[str, float]] | None = None
    """(arrays of a step, step) → more figures, such as the bad-ending rate of samples."""
    measure: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, float]] | None = None
    """(batch, arrays of its step) → figures that take a computation of their own."""
    check: Callable[[], None] | None = None
    """Raises what went wrong on the host during a step (a reward's exception)."""
    spent: Callable[[], dict[str, float]] | None = None
    """Seconds that the host has spent on parts of steps since the last call, by their names."""
    peak_seconds: float | None = None
    """What a step's products would take at the device's peak: for the model FLOPs utilisation."""
    note: Callable[[Sequence[Mapping[str, Any]]], None] | None = None
    """Records the roll-backs so far."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How `fit` ended."""

    state: TrainState
    finished: bool  # reached config.steps
    stopped_by: Trip | None = None  # a guard that stopped it


def fit(
    config: Config,
    step: TrainStep,
    initial: Callable[[], Params],
    frozen: Params,
    batches: Batches,
    checkpoints: Checkpoints,
    logger: Logger,
    mesh: Mesh,
    hooks: Hooks,
    *,
    guards: Guards | None = None,
    stop_after: int | None = None,
    profile: Profile | None = None,
) -> Result:
    """Trains to `config.steps`.

    It leaves earlier, with a checkpoint, on SIGTERM, after `stop_after` steps, and where a guard
    says so.

    Args:
      initial: loads the trained parameters before the first step. It is called where there is no
        checkpoint to go on from, or to go back to; nobody else should keep what it returns.
      frozen: the parameters that the step reads beside the trained ones.
      profile: traces some of the steps.
    """
    run = _Run(config, step, initial, batches, checkpoints, logger, hooks, guards)
    first = run.begin()
    window = _Window()
    finished, stopped_by = True, None
    bar = progress(total=config.steps, initial=first, desc=config.stage, unit="step")
    tracing = profile or contextlib.nullcontext()
    with preemption() as preempted, jax.set_mesh(mesh), tracing, bar:
        run.look_before()
        while run.done < config.steps:
            # 1. The next batch; threads read ahead, so waiting shows that they are too slow.
            batch = window.waiting_for(lambda: put_batch(next(batches), mesh))
            # 2. The step. It is dispatched only: what follows runs while the device computes.
            with profile.step(run.done + 1) if profile else contextlib.nullcontext():
                run.state, output = step(run.state, frozen, batch)
            run.done += 1
            window.add(output)
            if profile:
                profile.after(run.done, output)
            bar.update(1)
            # 3. What is due after this step.
            last = run.done == config.steps
            left = preempted(run.done) or run.done - first == stop_after
            leaving = left and not last
            every = config.eval.every
            due = last or (every > 0 and run.done % every == 0)
            validating = due and hooks.validate is not None
            saving = last or leaving or validating or run.done % config.checkpoint_every == 0
            trips: list[Trip] = []
            # 4. Log: wait for the device, and look whether all is well before anything is saved.
            if run.done % config.log_every == 0 or saving:
                figures, found = run.log(window, batch)
                trips += found
                bar.set_postfix({k: f"{figures[k]:.3g}" for k in SHOWN if k in figures})
            # 5. Validate. Its time is not that of steps.
            metrics = None
            if validating:
                metrics, found = run.validate()
                trips += found
                window.restart()
            # 6. Do what the guards say: nothing, stop, or go back.
            if guards is not None and not guards.sound:
                metrics = None  # such a checkpoint must not become the best one
            stopped_by = run.heed(trips)
            # 7. Save, together with the place in the data and the guards' memory.
            if saving or stopped_by:
                run.save(metrics)
            # 8. Leave in order.
            if leaving or stopped_by:
                finished = False
                break
    checkpoints.wait()
    logger.flush()
    return Result(run.state, finished, stopped_by)


@dataclasses.dataclass
class _Run:
    """The state of a run, and what is done with it."""

    config: Config
    step: TrainStep
    initial: Callable[[], Params]
    batches: Batches
    checkpoints: Checkpoints
    logger: Logger
    hooks: Hooks
    guards: Guards | None
    state: Any = None  # a TrainState; nobody else holds one
    done: int = 0  # steps

    def begin(self) -> int:
        """Starts at the latest checkpoint, or at the beginning; returns the steps done before."""
        first = self.checkpoints.latest()
        if first is None:
            self.state = self.step.start(self.initial())
        else:
            params, optimizer, progress_state = self._restore(first)
            if self.guards is not None and "guards" in progress_state:
                self.guards.restore(progress_state["guards"])
            scale = self.guards.lr_scale if self.guards is not None else 1
            self.state = self.step.state(first, params, optimizer, scale)
            self.batches.set_state(progress_state["data"])
            log.info("resumed at step %d of %d", first, self.config.steps)
        self.done = first or 0
        self.logger.truncate_after(-1 if first is None else first)
        if self.guards is not None and self.hooks.note is not None:
            self.hooks.note(self.guards.rollbacks)  # those after the checkpoint are undone
        return self.done

    def look_before(self) -> None:
        """A validation before the first step, where the guard `clip` needs it for a start."""
        if self.done or self.guards is None or self.guards.action("clip") == "off":
            return
        assert self.hooks.validate is not None
        metrics = {f"val/{k}": v for k, v in self.hooks.validate(self.state.params, 0).items()}
        self.logger.write(0, metrics)
        self.guards.begin(metrics)

    def log(self, window: _Window, batch: Mapping[str, Any]) -> tuple[dict[str, float], list[Trip]]:
        """Logs the steps of the window: their figures, and the guards that these trip."""
        figures, arrays = window.close(self.config.batch_size)
        if self.hooks.spent is not None:
            a_step = 1 / figures["steps_per_second"]
            seconds = {k: s / window.closed for k, s in self.hooks.spent().items()}
            figures |= {f"{name}_share": s / a_step for name, s in seconds.items()}
        if self.hooks.peak_seconds is not None:
            figures["mfu"] = self.hooks.peak_seconds * figures["steps_per_second"]
        if self.hooks.check is not None:
            self.hooks.check()
        if bad := [k for k, v in figures.items() if not math.isfinite(v)]:
            raise TrainingError(
                f"{', '.join(bad)} became NaN or infinite at or shortly before step {self.done}; "
                "nothing of it was saved. Lower config.optim.lr or config.optim.clip_norm, and "
                "resume"
            )
        if self.hooks.summarise is not None:
            figures |= self.hooks.summarise(arrays, self.done)
        if self.hooks.measure is not None:
            figures |= self.hooks.measure(batch, arrays)
        trips = []
        if self.guards is not None:
            trips = self.guards.observe(self.done, figures)
            figures |= {"lr_scale": self.guards.lr_scale} if self.guards.rollbacks else {}
        self.logger.write(self.done, {f"train/{k}": v for k, v in figures.items()})
        return figures, trips

    def validate(self) -> tuple[dict[str, float], list[Trip]]:
        """Validates and logs: the figures, and the guards that these trip."""
        assert self.hooks.validate is not None
        metrics = self.hooks.validate(self.state.params, self.done)
        self.logger.write(self.done, {f"val/{k}": v for k, v in metrics.items()})
        trips = self.guards.observe_validation(self.done, metrics) if self.guards else []
        return metrics, trips

    def heed(self, trips: Sequence[Trip]) -> Trip | None:
        """Does what the guards say; returns the one that stops the run, if one does."""
        for trip in trips:
            log.warning("step %d: %s (%s)", self.done, trip, trip.action)
            self.logger.event(self.done, dataclasses.asdict(trip))
        stop = next((trip for trip in trips if trip.action == "stop"), None)
        causes = [trip for trip in trips if trip.action == "rollback"]
        if self.guards is not None and stop is not None:
            self.guards.forget()  # a resumed run has patience again
        elif self.guards is not None and causes:
            self._roll_back(self.guards, causes)
        return stop

    def _roll_back(self, guards: Guards, causes: list[Trip]) -> None:
        """Parameters and moments of the best checkpoint, or of the start where there is none. The
        step goes on, and with it the data, the random numbers and the schedule."""
        self.state = None  # before another takes its place, not after
        best = self.checkpoints.best()
        if best is None:
            _, params, optimizer, _ = self.step.start(self.initial())
        else:
            params, optimizer, _ = self._restore(best)
        guards.rolled_back(self.done, best or 0, causes)
        self.state = self.step.state(self.done, params, optimizer, guards.lr_scale)
        told = {"rollback": True, **guards.rollbacks[-1], "lr_scale": guards.lr_scale}
        self.logger.event(self.done, told)
        if self.hooks.note is not None:
            self.hooks.note(guards.rollbacks)
        where = f"the checkpoint of step {best}" if best else "the start"
        log.warning("step %d: back to %s, learning rate x %g", self.done, where, guards.lr_scale)

    def _restore(self, step: int) -> tuple[Params, Any, dict[str, Any]]:
        wanted = self.step.abstract
        return self.checkpoints.restore(step, wanted.params, wanted.optimizer)

    def save(self, metrics: Mapping[str, float] | None) -> None:
        """A checkpoint of this step; with validation figures it may become the best one."""
        progress_state = {"data": self.batches.get_state(), "seed": self.config.seed}
        if self.guards is not None:
            progress_state["guards"] = self.guards.state()
        scored = metrics if metrics and METRIC in metrics else None
        _, params, optimizer, _ = self.state
        self.checkpoints.save(self.done, params, optimizer, progress_state, scored)


class _Window:
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
