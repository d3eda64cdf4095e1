"""Checkpoints of a run, by Orbax; the only file that imports it.

    RUN/checkpoints/<step>/params      what was trained, by flat names ("lm.layers.0.attn.q.kernel")
                          /optimizer   the optimizer's state
                          /progress    JSON: the data pipeline's state, the seed

Saving is asynchronous and atomic: a step directory gets its final name only when it is whole, so a
killed process leaves nothing that could be taken for a checkpoint. Two are kept, the latest and the
best by validation CIDEr. Restoring goes straight into the shards of whatever mesh is in use.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from har_jax.errors import UserError, did_you_mean
from har_jax.types import PyTree

METRIC = "CIDEr"
"""What "best" means: the higher `metrics[METRIC]` of a save."""


class Checkpoints:
    """The checkpoints below a run directory. All processes of a job make the same calls."""

    def __init__(self, run_dir: str | os.PathLike[str], *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save
        self.directory = _directory(run_dir)
        if read_only:
            finished_steps(run_dir)
        score = operator.itemgetter(METRIC)
        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        keep = policies.AnyPreservationPolicy([policies.LatestN(n=1), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else keep,
            best_fn=score,
            save_decision_policy=policies.FixedIntervalPolicy(1),
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            enable_async_checkpointing=not read_only,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def save(
        self,
        step: int,
        params: PyTree,
        optimizer: PyTree,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; returns once the arrays are copied. A step that is there is left alone."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(
        self, step: int, params: PyTree, optimizer: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Everything of one step. The arguments are abstract: shapes, dtypes and shardings."""
        self._check_shapes(step, params)
        self._check_optimizer(step, optimizer)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                optimizer=ocp.args.StandardRestore(optimizer),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["params"], restored["optimizer"], restored["progress"]

    def restore_params(self, step: int, params: PyTree) -> PyTree:
        """The parameters alone: how SCST starts from MLE, and how a captioner is loaded."""
        self._check_shapes(step, params)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(params))
        return self._manager.restore(step, args=args)["params"]

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step whose validation was the best; None where none that is kept was validated."""
        self.wait()
        return _best(dict(_scores(self.directory)))

    def wait(self) -> None:
        """Until all that was started to be saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _check_shapes(self, step: int, params: Mapping[str, Any]) -> None:
        """Names every difference at once; Orbax's own message speaks of handlers."""
        saved = self._manager.item_metadata(step)["params"]
        saved = {name: tuple(leaf.shape) for name, leaf in dict(saved).items()}
        wanted = {name: tuple(leaf.shape) for name, leaf in params.items()}
        wrong = [f"{n} is not in the checkpoint" for n in wanted if n not in saved]
        wrong += [f"{n} is only in the checkpoint" for n in saved if n not in wanted]
        wrong += [
            f"{n} is {saved[n]} in the checkpoint and {wanted[n]} in the model"
            for n in wanted
            if n in saved and saved[n] != wanted[n]
        ]
        if wrong:
            raise UserError(
                f"the checkpoint {self.directory / str(step)} does not fit the model: "
                + "; ".join(wrong[:20])
                + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
                + ". The model section of the configuration must be that of the training"
            )

    def _check_optimizer(self, step: int, optimizer: PyTree) -> None:
        saved, wanted = map(_leaves, (self._manager.item_metadata(step)["optimizer"], optimizer))
        if saved != wanted:
            other = sorted(name for name, _ in saved.items() ^ wanted.items())
            raise UserError(
                f"the optimizer's state in {self.directory / str(step)} has another structure than "
                f"this version's ({', '.join(other[:5])}{', ...' if len(other) > 5 else ''}): "
                "finish the run with the version of har_jax that began it, or begin a new one"
            )


def _leaves(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes by path. Orbax's description of a saved tree has dictionaries for named tuples."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="."): x.shape for k, x in leaves}


def _directory(run_dir: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def finished_steps(run_dir: str | os.PathLike[str]) -> dict[int, float | None]:
    """The steps that were saved whole, each with its validation CIDEr if it was validated.

    Reads file names and JSON only: Orbax's own manager would start JAX, which a check of a
    configuration must not (in a job of several processes it would be too early).
    """
    directory = _directory(run_dir)
    if not directory.is_dir():
        raise UserError(
            f"{os.fspath(run_dir)} holds no checkpoints (no directory {directory.name!r} in it); "
            "give the --workdir of a run of har_jax.train"
        )
    return dict(_scores(directory))


def _scores(directory: pathlib.Path) -> Iterator[tuple[int, float | None]]:
    for path in directory.iterdir():
        if path.name.isdigit():  # one that is being written has a longer name
            file = path / "metrics" / "metrics"
            metrics = json.loads(file.read_text()) if file.exists() else {}
            yield int(path.name), metrics.get(METRIC)


def _best(steps: Mapping[int, float | None]) -> int | None:
    scored = [(value, step) for step, value in steps.items() if value is not None]
    return max(scored)[1] if scored else None


def has_checkpoint(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a run is there that has got as far as its first checkpoint."""
    directory = _directory(run_dir)
    return directory.is_dir() and any(_scores(directory))


def resolve_step(run_dir: str | os.PathLike[str], step: str | int) -> int:
    """`"best"` (by validation CIDEr, or the latest where none was validated), `"latest"` or a
    number, to a step that is there; `UserError` otherwise."""
    steps = finished_steps(run_dir)
    name = os.fspath(run_dir)
    there = ", ".join(map(str, sorted(steps)))
    if not steps:
        raise UserError(
            f"{name} holds no finished checkpoint yet; let the run reach its first one "
            "(config.checkpoint_every)"
        )
    if step in ("best", "latest"):
        best = _best(steps) if step == "best" else None
        return max(steps) if best is None else best
    if not str(step).isdigit():
        raise UserError(
            f"step {step!r}{did_you_mean(str(step), ('best', 'latest'))}: allowed are best, "
            f"latest, or one of {there}"
        )
    if int(step) not in steps:
        raise UserError(f"{name} has no checkpoint of step {step}; it has {there}")
    return int(step)


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and dtypes of `tree` with these shardings: what `restore` fills."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
