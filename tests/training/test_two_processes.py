"""One run in two processes of four devices each: the same losses as in one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from har_jax import train
from tests.conftest import ROOT, xla_flags
from tests.training.commands import train_arguments


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train_in(processes, argv):
    """Runs the command in so many processes at once, with eight devices in all; one is this one."""
    if processes == 1:
        assert train.main(argv) == 0
        return []
    devices = 8 // processes
    common = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices),
        "NPROC": "32",
        "HAR_PROGRESS": "0",
        "HAR_DISTRIBUTED": "1",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.child", "har_jax.train", *argv],
            cwd=ROOT,
            env={**common, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [p.returncode for p in running] == [0] * processes, "\n----\n".join(outputs)
    return outputs


def rows(run, key):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in lines if key in row]


def test_two_processes_equal_one(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {"steps": 4, "log_every": 1, "eval__every": 2, "mesh__data": 2, "mesh__fsdp": 4}
    # Validation is compared once: both stages do it by the same code.
    scst = {"scst__samples": 2, **settings, "eval__every": 0, "data__val_split": ""}
    for n in (1, 2):
        here = tmp_path / str(n)
        outputs = train_in(n, train_arguments(workspace, here / "mle", **settings))
        assert [f"process {i + 1} of {n}" in out for i, out in enumerate(outputs)] == [True] * len(
            outputs
        )
        assert ["  report      " in out for out in outputs] == [True, False][: len(outputs)]
        assert (here / "mle" / "report.html").is_file()
        argv = train_arguments(workspace, here / "scst", "scst", init_from=here / "mle", **scst)
        train_in(n, argv)
    for stage, key in (("mle", "train/loss"), ("mle", "val/CIDEr"), ("scst", "train/loss")):
        one, two = (rows(tmp_path / str(n) / stage, key) for n in (1, 2))
        assert len(one) == len(two) >= 2
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=f"{stage} {key}")
    one, two = (rows(tmp_path / str(n) / "scst", "train/reward") for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    # Resuming in another number of processes: the state is global.
    argv = train_arguments(workspace, tmp_path / "2" / "mle", **{**settings, "steps": 6})
    train_in(1, argv)
    assert len(rows(tmp_path / "2" / "mle", "train/loss")) == 6
