"""The training loop: steps, logs, validation, guards, checkpoints, and an orderly end.

It knows neither stages nor rewards: it is given a compiled step, an iterator of batches, what to
call for validation, and the guards that may stop it or take it back to its best checkpoint. A run
that is killed at any moment continues from its last checkpoint with the same batches and the same
random numbers, bit for bit on the same devices.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import METRIC, Checkpoints, abstract
from har_jax.config import Config
from har_jax.loading.writer import put_batch
from har_jax.models.functional import Params
from har_jax.progress import progress
from har_jax.training.guards import Guards, Trip
from har_jax.training.loggers import MetricsWriter
from har_jax.training.preemption import Preemption
from har_jax.training.step import TrainState, TrainStep

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Steps dispatched ahead of the device; more would only queue up batches in memory."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not a number, or a reward that failed."""


class Batches(Protocol):
    """An iterator whose state can be saved and restored exactly (`data.pipeline.train_batches`)."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...
    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass
class Hooks:
    """What a stage adds to the loop."""

    validate: Callable[[Params, int], dict[str, float]] | None = None
    """(trained parameters, step) → validation figures with the key `CIDEr`."""
    summarise: Callable[[Mapping[str, Any], int], dict[str, float]] | None = None
    """(arrays that a step logged, step) → more figures, such as the bad-ending rate of samples."""
    measure: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, float]] | None = None
    """(batch, arrays that its step logged) → figures that take a computation of their own."""
    check: Callable[[], None] | None = None
    """Raises what went wrong on the host during a step (a reward's exception)."""
    start_over: Callable[[], Params] | None = None
    """The trained parameters before the first step, loaded anew: for guards that roll back."""
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
    params: Params,
    frozen: Params,
    batches: Batches,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    mesh: Mesh,
    hooks: Hooks,
    *,
    guards: Guards | None = None,
    stop_after: int | None = None,
) -> Result:
    """Trains to `config.steps`.

    It leaves earlier, with a checkpoint, on SIGTERM, after `stop_after` steps, and where a guard
    says so.
    """
    state = step.start(params)
    first = checkpoints.latest()
    if first is not None:
        restored, optimizer, progress_state = checkpoints.restore(
            first,
            abstract(state.params, step.shardings.params),
            abstract(state.optimizer, step.shardings.optimizer),
        )
        if guards is not None and "guards" in progress_state:
            guards.restore(progress_state["guards"])
        state = step.state(first, restored, optimizer, guards.lr_scale if guards else 1)
        batches.set_state(progress_state["data"])
        log.info("resumed at step %d of %d", first, config.steps)
    done = first or 0
    writer.truncate_after(-1 if first is None else done)
    if guards is not None and hooks.note is not None:
        hooks.note(guards.rollbacks)  # those after the checkpoint are undone

    window = _Window()
    finished, stopped_by = True, None
    bar = progress(total=config.steps, initial=done, desc=config.stage, unit="step")
    with Preemption() as preemption, jax.set_mesh(mesh), bar:
        if first is None and guards is not None and guards.action("clip") != "off":
            assert hooks.validate is not None
            metrics = {f"val/{k}": v for k, v in hooks.validate(state.params, 0).items()}
            writer.write(0, metrics)
            guards.begin(metrics)
        while done < config.steps:
            trips: list[Trip] = []
            batch = put_batch(next(batches), mesh)
            state, logs = step(state, frozen, batch)
            done += 1
            window.add(logs)
            bar.update(1)
            last = done == config.steps
            leaving = preemption.reached(done) or done - (first or 0) == stop_after
            leaving = leaving and not last
            every = config.eval.every
            validating = hooks.validate is not None and (last or (every and done % every == 0))
            saving = last or leaving or validating or done % config.checkpoint_every == 0
            if done % config.log_every == 0 or saving:
                figures, arrays = window.close(done, config.batch_size)
                _check(figures, done, hooks)
                if hooks.summarise is not None:
                    figures |= hooks.summarise(arrays, done)
                if hooks.measure is not None:
                    figures |= hooks.measure(batch, arrays)
                if guards is not None:
                    trips += guards.observe(done, figures)
                    figures |= {"lr_scale": guards.lr_scale} if guards.rollbacks else {}
                writer.write(done, {f"train/{k}": v for k, v in figures.items()})
                bar.set_postfix(_postfix(figures))
            metrics = None
            if validating and hooks.validate is not None:
                metrics = hooks.validate(state.params, done)
                writer.write(done, {f"val/{k}": v for k, v in metrics.items()})
                window.restart()
                if guards is not None:
                    trips += guards.observe_validation(done, metrics)
            if guards is not None:
                if not guards.sound:
                    metrics = None  # such a checkpoint must not become the best one
                if trips:
                    state, stopped_by = _react(
                        trips, guards, state, done, step, checkpoints, writer, hooks
                    )
            if saving or stopped_by:
                checkpoints.save(
                    done,
                    state.params,
                    state.optimizer,
                    {
                        "data": batches.get_state(),
                        "seed": config.seed,
                        **({"guards": guards.state()} if guards is not None else {}),
                    },
                    metrics if metrics and METRIC in metrics else None,
                )
            if leaving or stopped_by:
                finished = False
                break
    checkpoints.wait()
    writer.flush()
    return Result(state, finished, stopped_by)


def _react(
    trips: list[Trip],
    guards: Guards,
    state: TrainState,
    done: int,
    step: TrainStep,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    hooks: Hooks,
) -> tuple[TrainState, Trip | None]:
    """Does what the guards say: the state to go on with, and the guard that stops the run if so."""
    for trip in trips:
        log.warning("step %d: %s (%s)", done, trip, trip.action)
        writer.event(done, dataclasses.asdict(trip))
    stop = next((trip for trip in trips if trip.action == "stop"), None)
    if stop is not None:
        guards.forget()  # a resumed run has patience again
        return state, stop
    causes = [trip for trip in trips if trip.action == "rollback"]
    if not causes:
        return state, None
    assert hooks.start_over is not None
    best = checkpoints.best()
    if best is None:
        params = hooks.start_over()
        optimizer = step.start(params).optimizer
    else:
        params, optimizer, _ = checkpoints.restore(
            best,
            abstract(state.params, step.shardings.params),
            abstract(state.optimizer, step.shardings.optimizer),
        )
    guards.rolled_back(done, best or 0, causes)
    writer.event(done, {"rollback": True, **guards.rollbacks[-1], "lr_scale": guards.lr_scale})
    if hooks.note is not None:
        hooks.note(guards.rollbacks)
    place = f"the checkpoint of step {best}" if best else "the start"
    log.warning("step %d: back to %s, learning rate x %g", done, place, guards.lr_scale)
    return step.state(done, params, optimizer, guards.lr_scale), None


class _Window:
    """Logs since the last report. Only finished steps are read: the device never waits for it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.began = time.perf_counter()

    def add(self, logs: dict[str, Any]) -> None:
        self.logs.append(logs)
        if len(self.logs) > MAX_IN_FLIGHT:
            jax.block_until_ready(self.logs[-1 - MAX_IN_FLIGHT]["loss"])

    def close(self, step: int, batch_size: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Means of the scalars (the last value where a mean says nothing), and the last arrays."""
        del step
        values = jax.device_get([{k: v for k, v in x.items() if v.ndim == 0} for x in self.logs])
        arrays = {k: v for k, v in self.logs[-1].items() if v.ndim > 0}
        seconds = time.perf_counter() - self.began
        figures = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
        figures["steps_per_second"] = len(values) / seconds
        figures["images_per_second"] = len(values) * batch_size / seconds
        self.restart()
        return figures, arrays


def _check(figures: Mapping[str, float], step: int, hooks: Hooks) -> None:
    if hooks.check is not None:
        hooks.check()
    bad = [k for k, v in figures.items() if not math.isfinite(v)]
    if bad:
        raise TrainingError(
            f"{', '.join(bad)} became NaN or infinite at or shortly before step {step}; nothing of "
            "it was saved. Lower config.optim.lr or config.optim.clip_norm, and resume"
        )


def _postfix(figures: Mapping[str, float]) -> dict[str, str]:
    shown = ("loss", "reward", "reward_greedy", "accuracy", "images_per_second")
    return {k: f"{figures[k]:.3g}" for k in shown if k in figures}
