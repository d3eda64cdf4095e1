"""Several processes, one run: joining a job, and what lies on other processes' devices."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from har_jax.errors import UserError
from har_jax.sharding import BATCH_AXES, batch_sharding

log = logging.getLogger(__name__)


def join_if_asked() -> None:
    """`join_processes` where HAR_DISTRIBUTED is 1, as launch/ sets it: several processes, one run.
    Before anything asks JAX for a device."""
    if os.environ.get("HAR_DISTRIBUTED") == "1":
        join_processes()


def join_processes() -> None:
    """Makes this process one of a job. TPU pods and Slurm tell JAX who is who; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do."""
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    given: Any = {k: int(os.environ[name]) for k, name in names.items() if name in os.environ}
    jax.distributed.initialize(**given)
    log.info("process %d of %d", jax.process_index() + 1, jax.process_count())


def batch_part(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(part, parts): which part of a global batch a process feeds, and how many parts there are.

    The batch is split over `data` and `fsdp` only. Where `tensor` spans processes, these hold the
    same rows and feed the same part, so there are fewer parts than processes.

    Args:
      process: its index; this one's by default.

    Raises:
      UserError: processes share some of their rows, and not others.
    """
    process = jax.process_index() if process is None else process
    split = [axis for axis in BATCH_AXES if axis in mesh.axis_names]
    first = np.moveaxis(mesh.devices, [mesh.axis_names.index(a) for a in split], range(len(split)))
    rows: dict[int, set[int]] = {}  # process → the shards of the batch on its devices
    shards = first.reshape(np.prod(first.shape[: len(split)], dtype=int), -1)
    for number, device in ((n, d) for n, devices in enumerate(shards) for d in devices):
        rows.setdefault(device.process_index, set()).add(number)
    parts = sorted({tuple(sorted(those)) for those in rows.values()})
    if sum(map(len, parts)) != len(set().union(*parts)) or len({len(p) for p in parts}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)}: its processes hold overlapping parts of a batch; choose "
            "config.mesh.data, config.mesh.fsdp and config.mesh.tensor so that `tensor` divides "
            "the devices of a process, or is a multiple of them"
        )
    return parts.index(tuple(sorted(rows[process]))), len(parts)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch (`batch_part`), as global arrays over `data` and `fsdp`.

    Raises:
      UserError: a 64-bit integer, such as an image id, does not fit the 32 bits of devices.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, narrow(name, value))
        for name, value in batch.items()
    }


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array that is split along its first axis, each once."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gather(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array on the host, on every process; all of them must call it.

    It is a copy that goes away when it is dropped: `np.asarray` keeps that of a sharded array.
    """
    if isinstance(x, np.ndarray):
        return x
    if not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    if len(x.sharding.device_set) == 1:
        return np.asarray(x)
    out = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = shard.data
    return out


def mean_over_processes(figures: Mapping[str, float]) -> dict[str, float]:
    """The mean over all processes, each of which has as many rows: guards, for one, must see the
    same figures in each of them."""
    if jax.process_count() == 1:
        return dict(figures)
    values = multihost_utils.process_allgather(np.asarray(list(figures.values()), np.float32))
    return dict(zip(figures, values.mean(axis=0).tolist(), strict=True))


def narrow(name: str, value: np.ndarray) -> np.ndarray:
    """64-bit integers as 32-bit ones, as devices hold them.

    Raises:
      UserError: one does not fit.
    """
    if value.dtype != np.int64:
        return value
    narrow = value.astype(np.int32)
    if not np.array_equal(narrow, value):
        raise UserError(
            f"{name} {value.max()} does not fit 32 bits; number the images of the dataset anew"
        )
    return narrow
