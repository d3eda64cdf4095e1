"""Checkpoints of a run, by Orbax; the only file that imports it.

    RUN/checkpoints/<step>/params      what was trained, under flat names: "lm.layers.0.attn.q.kernel"
                          /optimizer   the optimizer's state
                          /progress    JSON: the data pipeline's state, the seed

Saving is asynchronous and atomic: a step directory gets its final name only when it is whole, so a
killed process leaves nothing that could be taken for a checkpoint. Two are kept, the latest and the
best by validation CIDEr. Restoring goes straight into the shards of whatever mesh is in use.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
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

    def __init__(self, run_dir: str | pathlib.Path, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save
        self.directory = pathlib.Path(run_dir).absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"{run_dir} holds no checkpoints (no directory {self.directory.name!r} in it); "
                "give the --workdir of a run of har_jax.train"
            )
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else keep,
            best_fn=lambda metrics: metrics[METRIC],
            save_decision_policy=policies.FixedIntervalPolicy(1),
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            enable_async_checkpointing=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        step: int,
        params: PyTree,
        optimizer: PyTree,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving and returns once the arrays are copied; a step that is there already is left."""
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
        """The step with the highest validation CIDEr; the latest where none was validated."""
        scored = [
            (self._manager.metrics(step)[METRIC], step)
            for step in self.steps()
            if METRIC in (self._manager.metrics(step) or {})
        ]
        return max(scored)[1] if scored else self.latest()

    def resolve(self, step: str | int) -> int:
        """`"best"`, `"latest"` or a number to a step that is there; `UserError` otherwise."""
        steps = self.steps()
        if not steps:
            raise UserError(
                f"{self.directory.parent} holds no finished checkpoint yet; let the run reach its "
                "first one (config.checkpoint_every)"
            )
        if step == "best":
            found = self.best()
        elif step == "latest":
            found = self.latest()
        else:
            text = str(step)
            if not text.isdigit():
                raise UserError(
                    f"step {text!r}{did_you_mean(text, ('best', 'latest'))}: allowed are best, "
                    f"latest, or one of {', '.join(map(str, steps))}"
                )
            found = int(text)
        if found not in steps:
            raise UserError(
                f"{self.directory.parent} has no checkpoint of step {step}; "
                f"it has {', '.join(map(str, steps))}"
            )
        return found

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
                + ". The model section of the configuration must be the one that it was trained with"
            )


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and dtypes of `tree` with these shardings: what `restore` fills."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
