"""Which part of a batch a process feeds, on meshes whose `tensor` axis spans processes or not."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from har_jax.distributed import batch_part, gather, local_rows, put_batch
from har_jax.errors import UserError
from har_jax.sharding import MESH_AXES, make_mesh
from tests.conftest import ROOT, xla_flags
from tests.training.test_two_processes import free_port


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh asks for."""

    id: int
    process_index: int


def parts(sizes, per_process, order=None):
    """(part, parts) of every process on a mesh of so many devices for each."""
    n = int(np.prod(sizes))
    devices = np.empty(n, object)
    for i, d in enumerate(order or range(n)):
        devices[i] = Device(d, d // per_process)
    mesh = jax.sharding.Mesh(devices.reshape(sizes), MESH_AXES)
    return [batch_part(mesh, process) for process in range(n // per_process)]


def test_every_process_feeds_its_own_rows():
    assert parts((1, 8, 1), 4) == parts((2, 2, 2), 4) == parts((2, 4, 1), 4) == [(0, 2), (1, 2)]
    assert parts((4, 1, 2), 2) == [(i, 4) for i in range(4)]


def test_processes_of_one_tensor_group_feed_the_same_rows():
    assert parts((1, 1, 8), 4) == [(0, 1), (0, 1)]
    assert parts((2, 1, 4), 2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert parts((1, 2, 8), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_processes_that_share_some_of_their_rows():
    with pytest.raises(UserError, match="overlapping parts of a batch"):
        parts((1, 4, 3), 4)


def test_one_process():
    mesh = make_mesh(2, 2, 2)
    assert batch_part(mesh) == (0, 1)
    batch = {"image_id": np.arange(8, dtype=np.int64), "x": np.ones((8, 3), np.float32)}
    arrays = put_batch(batch, mesh)
    assert arrays["image_id"].dtype == np.int32
    np.testing.assert_array_equal(local_rows(arrays["image_id"]), np.arange(8))
    np.testing.assert_array_equal(gather(arrays["image_id"]), np.arange(8))
    with pytest.raises(UserError, match="does not fit 32 bits"):
        put_batch({"image_id": np.full(8, 2**40)}, mesh)


PROGRAM = """
import numpy as np
from har_jax.distributed import batch_part, gather, join_processes, mean_over_processes, put_batch
join_processes()
import jax
from har_jax.sharding import make_mesh
for sizes, expected in (((1, 4, 1), 2), ((1, 1, 4), 1), ((1, 2, 2), 2)):
    mesh = make_mesh(*sizes)
    part, of = batch_part(mesh)
    assert of == expected, (sizes, of)
    rows = np.arange(8, dtype=np.int64).reshape(of, -1)[part]
    whole = put_batch({"image_id": rows}, mesh)["image_id"]
    assert whole.shape == (8,) and not whole.is_fully_addressable
    assert gather(whole).tolist() == list(range(8)), sizes
assert mean_over_processes({"x": float(jax.process_index())}) == {"x": 0.5}
"""


def test_two_processes_with_and_without_a_common_tensor_axis():
    common = {
        **os.environ,
        "XLA_FLAGS": xla_flags(2),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**common, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [p.returncode for p in running] == [0, 0], "\n----\n".join(outputs)
    assert jax.process_count() == 1  # that of the tests themselves
