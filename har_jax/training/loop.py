"""The training loop: steps, logs, validation, guards, checkpoints, and an orderly end.

It knows neither objectives nor rewards: it is given a compiled step, an iterator of batches, what
to call for validation, and the guards that may stop it or take it back to its best checkpoint. A
run that is killed at any moment continues from its last checkpoint with the same batches and the
same random numbers, bit for bit on the same devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import METRIC, Checkpoints
from har_jax.config import Config
from har_jax.distributed import put_batch
from har_jax.errors import UserError
from har_jax.models.functional import Params
from har_jax.progress import progress
from har_jax.training.guards import Guards, Trip
from har_jax.training.loggers import Logger
from har_jax.training.preemption import preemption
from har_jax.training.profile import Profile
from har_jax.training.step import TrainState, TrainStep
from har_jax.training.window import Window

log = logging.getLogger(__name__)

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
    leave: Callable[[], None] | None = None
    """Called from another thread when the run is to leave: nothing may be waited for any more."""
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
    step: int = 0  # steps done
    signal: int = 0  # the signal that it left because of


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

    It leaves earlier, with a checkpoint, on SIGTERM, SIGINT and SIGHUP, after `stop_after` steps,
    and where a guard says so.

    Args:
      initial: loads the trained parameters before the first step. It is called where there is no
        checkpoint to go on from, or to go back to; nobody else should keep what it returns.
      frozen: the parameters that the step reads beside the trained ones.
      profile: traces some of the steps.
    """
    run = _Run(config, step, initial, batches, checkpoints, logger, hooks, guards)
    first = run.begin()
    profile = profile or Profile("", 1, 0)  # of no step
    profile.begin(first)
    window = Window()
    finished = True
    bar = progress(total=config.steps, initial=first, desc=config.stage, unit="step")
    with preemption() as preempted, jax.set_mesh(mesh), profile, bar, _waiting_for(checkpoints):
        preempted.unsaved = run.unsaved
        preempted.asked = hooks.leave or preempted.asked
        run.look_before()
        stopped_by = run.catch_up()
        while run.done < config.steps and stopped_by is None:
            # 1. The next batch; threads read ahead, so waiting shows that they are too slow.
            batch = window.waiting_for(lambda: put_batch(next(batches), mesh))
            # 2. The step. It is dispatched only: what follows runs while the device computes.
            with profile.step(run.done + 1):
                run.state, output = step(run.state, frozen, batch)
            run.done += 1
            window.add(output)
            program = functools.partial(step.program, run.state, frozen, batch)
            run.traced(profile.after(run.done, output, program))
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
                try:
                    figures, trips = run.log(window, batch)
                except (UserError, TrainingError) as error:
                    finished = run.give_up(error, preempted.number)
                    break
                bar.set_postfix({k: f"{figures[k]:.3g}" for k in SHOWN if k in figures})
            # 5. Validate, do what the guards say (nothing, stop, or go back), and save.
            if validating:
                stopped_by = run.validate_and_save(trips)
                window.restart()
            else:
                stopped_by = run.heed(trips)
                if saving or stopped_by:
                    run.save()
            # 6. Leave in order.
            if leaving or stopped_by:
                finished = False
                break
    logger.flush()
    return Result(run.state, finished and not stopped_by, stopped_by, run.done, preempted.number)


@contextlib.contextmanager
def _waiting_for(checkpoints: Checkpoints) -> Iterator[None]:
    """At the end, whatever it is, until all is on disk that was started to be saved."""
    try:
        yield
    finally:
        checkpoints.wait()


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
    saved: int = 0  # the step of the last checkpoint
    shares: dict[str, float] = dataclasses.field(default_factory=dict)  # of a step, to be logged
    late: bool = False  # whether a kill came between that and its validation

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
            self.late = bool(progress_state.get("validate"))
            log.info("resumed at step %d of %d", first, self.config.steps)
        self.done = self.saved = first or 0
        self.logger.truncate_after(-1 if first is None else first)
        if self.guards is not None and self.hooks.note is not None:
            self.hooks.note(self.guards.rollbacks)  # those after the checkpoint are undone
        return self.done

    def traced(self, shares: Mapping[str, float]) -> None:
        """Tells what took the time of a step that was traced, and keeps it for the next log."""
        if shares:
            parts = (f"{k.removesuffix('_share')} {v:.0%}" for k, v in shares.items())
            log.info("a step's time on the device: %s", ", ".join(parts))
            self.shares |= shares

    def unsaved(self) -> bool:
        """Whether leaving at once would lose anything."""
        return self.done > self.saved or self.checkpoints.saving

    def look_before(self) -> None:
        """A validation before the first step, where the guard `clip` needs it for a start."""
        if self.done or self.guards is None or self.guards.action("clip") == "off":
            return
        assert self.hooks.validate is not None
        metrics = {f"val/{k}": v for k, v in self.hooks.validate(self.state.params, 0).items()}
        self.logger.write(0, metrics)
        self.guards.begin(metrics)

    def log(self, window: Window, batch: Mapping[str, Any]) -> tuple[dict[str, float], list[Trip]]:
        """Logs the steps of the window: their figures, and the guards that these trip."""
        figures, arrays = window.close(self.config.batch_size)
        if self.hooks.spent is not None:
            a_step = 1 / figures["steps_per_second"]
            seconds = {k: s / window.closed for k, s in self.hooks.spent().items()}
            figures |= {f"{name}_share": s / a_step for name, s in seconds.items()}
        if self.hooks.peak_seconds is not None:
            figures["mfu"] = self.hooks.peak_seconds * figures["steps_per_second"]
        figures, self.shares = {**figures, **self.shares}, {}
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

    def catch_up(self) -> Trip | None:
        """The validation that a kill, or a failure, kept the latest checkpoint from."""
        if not self.late or self.hooks.validate is None:
            return None
        log.info("step %d is yet to be validated", self.done)
        self.logger.forget_validation(self.done)
        return self.validate_and_save([])

    def validate_and_save(self, trips: Sequence[Trip]) -> Trip | None:
        """Saves, validates, and adds to the checkpoint what that gave: so a validation that fails,
        or is killed, costs nothing but itself. Heeds the guards, as `heed`.

        Args:
          trips: of the training log of this step; where they change the state, it is saved after.
        """
        first = all(trip.action == "warn" for trip in trips)
        if first:
            self.tell(trips)
            trips = []
            self.save(validate=True)
            self.checkpoints.wait()  # a kill for want of memory comes without warning
        metrics, found = self.validate()
        if self.guards is not None and not self.guards.sound:
            metrics = None  # such a checkpoint must not become the best one
        scored = metrics if metrics and METRIC in metrics else None
        before = len(self.guards.rollbacks) if self.guards is not None else 0
        stopped_by = self.heed([*trips, *found])
        back = self.guards is not None and len(self.guards.rollbacks) > before
        if first and not back:
            self.checkpoints.complete(self.done, self._progress(), scored)
        else:
            self.save(scored, anew=True)
        return stopped_by

    def give_up(self, error: Exception, signal: int) -> bool:
        """False, where a signal came while a step could not be finished; else raises the error."""
        if not signal:
            raise error
        self.done = self.saved
        log.warning("what came after step %d was not saved: %s", self.saved, error)
        return False

    def tell(self, trips: Sequence[Trip]) -> None:
        """Logs what guards found."""
        for trip in trips:
            log.warning("step %d: %s (%s)", self.done, trip, trip.action)
            self.logger.event(self.done, dataclasses.asdict(trip))

    def heed(self, trips: Sequence[Trip]) -> Trip | None:
        """Does what the guards say; returns the one that stops the run, if one does."""
        self.tell(trips)
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

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        *,
        validate: bool = False,
        anew: bool = False,
    ) -> None:
        """A checkpoint of this step; with validation figures it may become the best one.

        Args:
          validate: it is yet to be validated.
          anew: replace the one that is there.
        """
        made = self._progress() | ({"validate": True} if validate else {})
        _, params, optimizer, _ = self.state
        self.checkpoints.save(self.done, params, optimizer, made, metrics, anew=anew)
        self.saved = self.done

    def _progress(self) -> dict[str, Any]:
        state = {"data": self.batches.get_state(), "seed": self.config.seed}
        return state if self.guards is None else state | {"guards": self.guards.state()}
