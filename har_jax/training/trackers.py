"""Experiment trackers, named by `config.trackers`: what a run tells, where people look for it.

tensorboard                 event files in the run (`loggers.TensorBoard`)
wandb                       Weights & Biases; project $WANDB_PROJECT; WANDB_MODE=offline
mlflow                      $MLFLOW_TRACKING_URI; experiment $MLFLOW_EXPERIMENT_NAME
trackio                     trackio's local store; project $TRACKIO_PROJECT
package.module:function     of one's own: (run directory, settings) -> `loggers.Logger`

A run that is continued goes on in the same run of the tracker, whose id is kept in `trackers.json`.
Trackers cannot forget: steps that are done again after a kill are told twice, the later ones last.
No tracker ends a training: one that raises is told of once, and is silent from then on.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from har_jax.errors import UserError, did_you_mean, one_line, raised_by
from har_jax.files import write_json
from har_jax.foreign import read_typed
from har_jax.plugins import load_function
from har_jax.training.loggers import TENSORBOARD, Logger, TensorBoard

log = logging.getLogger(__name__)

IDS = "trackers.json"
PROJECT = "har_jax"
"""Of a tracker whose own variable names no other."""


class Tracker(Logger, abc.ABC):
    """A run of a tracker, which begins with the first thing that is told.

    Args:
      run_dir: its name is that of the tracker's run; `trackers.json` in it keeps the id.
      settings: of the run, nested.
    """

    name = ""

    def __init__(self, run_dir: pathlib.Path, settings: Mapping[str, Any]):
        self.run_dir, self.settings = run_dir, settings
        self._run: Any = None

    @property
    def run(self) -> Any:
        """The tracker's run, begun or continued."""
        if self._run is None:
            ids = self._ids()
            self._run, identity = self.begin(ids.get(self.name))
            write_json(self.run_dir / IDS, {**self._ids(), self.name: identity})
        return self._run

    def _ids(self) -> dict[str, str]:
        path = self.run_dir / IDS
        return read_typed(path, dict[str, str], "ids of trackers' runs") if path.exists() else {}

    @abc.abstractmethod
    def begin(self, known: str | None) -> tuple[Any, str]:
        """The run of an id, or a new one; and its id."""

    def close(self) -> None:
        if self._run is not None:
            self.end(self._run)
            self._run = None

    @abc.abstractmethod
    def end(self, run: Any) -> None:
        """Brings everything away."""


class Wandb(Tracker):
    """Steps are an axis of their own (`step`): W&B's own counter cannot go back."""

    name = "wandb"

    def begin(self, known: str | None) -> tuple[Any, str]:
        wandb = importlib.import_module("wandb")
        identity = known or uuid.uuid4().hex[:12]
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.run_dir.name,
            id=identity,
            resume="allow",
            dir=str(self.run_dir),
            config=dict(self.settings),
            reinit="create_new",
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run, identity

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({"step": step, **figures})

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        self.run.log({"step": step, **{f"event/{key}": value for key, value in fields.items()}})

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = importlib.import_module("wandb").Table
        columns, data = as_table(rows)
        self.run.log({"step": step, f"samples/{split}": table(columns=columns, data=data)})

    def end(self, run: Any) -> None:
        run.finish()


class Mlflow(Tracker):
    """Settings are parameters, figures metrics, samples tables among the artifacts."""

    name = "mlflow"

    def begin(self, known: str | None) -> tuple[Any, str]:
        mlflow = importlib.import_module("mlflow")
        client = mlflow.MlflowClient()
        if known is not None:
            client.update_run(known, status="RUNNING")
            return (client, known), known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        identity = client.create_run(experiment, run_name=self.run_dir.name).info.run_id
        flat = flatten_dict(dict(self.settings), sep=".")
        params = [mlflow.entities.Param(str(key), str(value)[:500]) for key, value in flat.items()]
        client.log_batch(identity, params=params)
        return (client, identity), identity

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        metric = importlib.import_module("mlflow.entities").Metric
        client, identity = self.run
        now = int(time.time() * 1000)
        metrics = [metric(name, value, now, step) for name, value in figures.items()]
        client.log_batch(identity, metrics=metrics)

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        client, identity = self.run
        client.set_tag(identity, f"event.{step}", json.dumps(dict(fields), default=str)[:5000])

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        client, identity = self.run
        columns, data = as_table(rows)
        file = f"samples/{split}/step-{step:07d}.json"
        client.log_dict(identity, {"columns": columns, "data": data}, file)

    def end(self, run: Any) -> None:
        client, identity = run
        client.set_terminated(identity)


class Trackio(Tracker):
    name = "trackio"

    def begin(self, known: str | None) -> tuple[Any, str]:
        trackio = importlib.import_module("trackio")
        identity = known or f"{self.run_dir.name}-{uuid.uuid4().hex[:6]}"
        run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=identity,
            config=dict(self.settings),
            resume="allow",
            embed=False,
        )
        return run, identity

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        self.run.log({f"event/{key}": value for key, value in fields.items()}, step=step)

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = importlib.import_module("trackio").Table
        columns, data = as_table(rows)
        self.run.log({f"samples/{split}": table(columns=columns, data=data)}, step=step)

    def end(self, run: Any) -> None:
        run.finish()


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (Wandb, Mlflow, Trackio)}


def as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(columns, a list for each row) of captions. A column of numbers stays one; all others are
    texts, for trackers want one type in each (ids of images may be both)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {column: [row.get(column) for row in rows] for column in columns}
    numbers = {
        column
        for column, found in values.items()
        if all(isinstance(value, int | float | None) for value in found)
    }

    def cell(column: str, value: Any) -> Any:
        if value is None or column in numbers or isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False, default=str)

    return columns, [[cell(column, row.get(column)) for column in columns] for row in rows]


class Forgiving(Logger):
    """A logger that does not end the run: after its first exception it is told nothing more."""

    def __init__(self, name: str, make: Callable[[], Logger]):
        self._name, self._make = name, make
        self._logger: Logger | None = None
        self._failed = False

    def _told(self, method: str, *args: Any) -> None:
        if self._failed:
            return
        try:
            if self._logger is None:
                self._logger = self._make()
            getattr(self._logger, method)(*args)
        except Exception as error:  # whatever a tracker, its server or the net may raise
            self._failed = True
            with contextlib.suppress(Exception):  # so that its process ends
                getattr(self._logger, "close", lambda: None)()
            log.warning(
                "tracker %s: %s; this run tells it nothing more (its figures are in metrics.jsonl)",
                *(self._name, one_line(raised_by(error))),
            )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._told("write", step, figures)

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        self._told("event", step, fields)

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._told("samples", step, split, rows)

    def truncate_after(self, step: int) -> None:
        self._told("truncate_after", step)

    def forget_validation(self, step: int) -> None:
        self._told("forget_validation", step)

    def flush(self) -> None:
        self._told("flush")

    def close(self) -> None:
        if self._logger is not None:
            self._told("close")


def names_of(trackers: str) -> list[str]:
    """`"tensorboard, wandb"` as a list.

    Raises:
      UserError: there is no such tracker, it is not installed, or a function is not there.
    """
    names = [name.strip() for name in trackers.split(",") if name.strip()]
    known = (TENSORBOARD, *TRACKERS)
    for name in names:
        if ":" in name:
            load_function(name, "config.trackers")
        elif name not in known:
            raise UserError(
                f"config.trackers: {name!r} is unknown{did_you_mean(name, known)}; give names of "
                f"{', '.join(known)}, with commas, or package.module:function"
            )
        elif name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.trackers: {name} is not installed; pip install 'har_jax[{name}]', or "
                "leave it out"
            )
    return names


def make_trackers(
    trackers: str, run_dir: str | os.PathLike[str], settings: Mapping[str, Any]
) -> list[Logger]:
    """The loggers that `config.trackers` names; nothing begins before it is told something.

    Raises:
      UserError: as `names_of`.
    """
    path = pathlib.Path(run_dir).absolute()
    made: list[Logger] = []
    for name in names_of(trackers):
        if name == TENSORBOARD:
            made.append(TensorBoard(path))
        elif name in TRACKERS:
            kind = TRACKERS[name]
            made.append(Forgiving(name, lambda kind=kind: kind(path, settings)))
        else:
            function = load_function(name, "config.trackers")
            made.append(Forgiving(name, lambda function=function: function(path, settings)))
    return made
