"""Checkpoints of a run, by Orbax; the only file that imports it.

    RUN/checkpoints/<step>/params      what was trained, by flat names ("lm.layers.0.attn.q.kernel")
                          /optimizer   the optimizer's state
                          /progress    JSON: the data pipeline's state, the seed
                          /metrics     JSON: figures of a validation, where there was one
                          /sums.json   size and CRC-32 of every file of arrays
    RUN/checkpoints/damaged-<step>     one that was not as it was written when a run went on

Saving is asynchronous and atomic: a step directory gets its final name only when it is whole, so a
killed process leaves nothing that could be taken for a checkpoint. Two are kept, the latest and the
best by validation CIDEr. Restoring goes straight into the shards of whatever mesh is in use.

What is restored is compared with its sums first. A damaged step is in nobody's way: who asks for
the best or the latest gets the next one that is whole, and a line that says so.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from har_jax.checkpoint_files import (
    METRIC,
    best_whole,
    directory_of,
    finished_steps,
    has_checkpoint,
    resolve_step,
    sealed,
    set_aside,
    steps_of,
    sum_up,
    unsealed,
)
from har_jax.errors import UserError, one_line
from har_jax.files import write_json
from har_jax.types import PyTree

__all__ = ["METRIC", "Checkpoints", "abstract", "finished_steps", "has_checkpoint", "resolve_step"]


class Checkpoints:
    """The checkpoints below a run directory. All processes of a job make the same calls.

    Raises:
      UserError: there are none to be read; or, of a run that is to go on, none is whole.
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, read_only: bool = False):
        # Orbax narrates every save; what goes wrong in its threads it raises, too.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = directory_of(run_dir)
        self._manager: Any = None
        if read_only:
            finished_steps(run_dir)
            return
        if jax.process_index() == 0:
            set_aside(self.directory)
        _together("checkpoints looked at")
        self._saving = 0  # the step that is being written
        score = operator.itemgetter(METRIC)
        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=1), best]),
            best_fn=score,
            save_decision_policy=policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_up),
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        }
        with _told(self.directory):
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
        *,
        anew: bool = False,
    ) -> None:
        """Starts saving; returns once the arrays are copied.

        Args:
          anew: replace a step that is there; else it is left alone.
        """
        if step in self._manager.all_steps():
            if not anew:
                return
            self.wait()
            self._manager.delete(step)
        self.wait()
        self._saving = step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                progress=ocp.args.JsonSave(sealed(progress)),
            ),
            metrics=None if metrics is None else sealed(metrics),
        )

    def complete(
        self, step: int, progress: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Adds to a step what became known after it was saved: the figures of its validation, and
        how the run goes on from there."""
        self.wait()
        path = self.directory / str(step)
        if jax.process_index() == 0:
            if metrics is not None:
                write_json(path / "metrics" / "metrics", sealed(metrics), None)
            write_json(path / "progress" / "metadata", sealed(progress), None)
        _together("checkpoint completed")
        self._manager.reload()

    def restore(
        self, step: int, params: PyTree, optimizer: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Everything of one step. The arguments are abstract: shapes, dtypes and shardings.

        Raises:
          UserError: the step does not fit, or cannot be read.
        """
        path = self.directory / str(step)
        self._check_shapes(step, params)
        self._check_optimizer(step, optimizer)
        restored = self._read(step, "params", params), self._read(step, "optimizer", optimizer)
        return *restored, unsealed(path / "progress" / "metadata")

    def restore_params(self, step: int, params: PyTree) -> PyTree:
        """The parameters alone: how SCST starts from MLE, and how a captioner is loaded.

        Raises:
          UserError: as `restore`; whatever else of the step is damaged is in nobody's way.
        """
        self._check_shapes(step, params)
        return self._read(step, "params", params)

    def steps(self) -> list[int]:
        return sorted(steps_of(self.directory))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step whose validation was the best; None where none that is kept was validated."""
        self.wait()
        return best_whole(self.directory)

    @property
    def saving(self) -> bool:
        """Whether something that was started to be saved is not on disk yet."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Until all that was started to be saved is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def _sum_up(self) -> None:
        """Called when all files of a step are written, before it gets its final name."""
        for place in self.directory.glob(f"{self._saving}.*"):
            sum_up(place)

    def _read(self, step: int, item: str, wanted: PyTree) -> PyTree:
        path = self.directory / str(step) / item
        with _told(path), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(path, args=ocp.args.StandardRestore(wanted))

    def _metadata(self, step: int, item: str) -> PyTree:
        path = self.directory / str(step) / item
        with _told(path), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            return reader.metadata(path).item_metadata.tree

    def _check_shapes(self, step: int, params: Mapping[str, Any]) -> None:
        """Names every difference at once; Orbax's own message speaks of handlers."""
        saved = self._metadata(step, "params")
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
        saved, wanted = map(_leaves, (self._metadata(step, "optimizer"), optimizer))
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


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    """Whatever Orbax and TensorStore raise of files that are not as they were written, in a line.
    There are many kinds of it; only of memory they say the truth."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        said = one_line(str(error).strip().partition("\n")[0])[:200]
        raise UserError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {said}); give another "
            "--step, or copy it again"
        ) from error


def _together(name: str) -> None:
    """Waits for all processes of a job."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and dtypes of `tree` with these shardings: what `restore` fills."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
