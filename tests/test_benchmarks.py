"""Benchmarks run: that for accelerators where there is none, and all others, on little."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
def test_accelerator_benchmark_writes_its_figures(tmp_path):
    out = tmp_path / "figures.jsonl"
    command = [sys.executable, "benchmarks/accelerator.py", "--size=tiny", "--rounds=1"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run([*command, f"--out={out}"], cwd=ROOT, env=environment, check=True, timeout=500)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [row["what"] for row in rows]
    assert names[0] == "ceilings" and rows[0]["flops"] > 0
    steps = [name for name in names if "base" in name]
    assert len(steps) == 8 and any("int8 base, P=17" in name for name in steps)
    assert all(row["seconds"] > 0 and row["device"] for row in rows[1:])
    assert any(row.get("tokens_per_second", 0) > 0 for row in rows)


LITTLE = {
    "blueprint": ["benchmarks/blueprint.py", "--rounds=1"],
    "floors": ["benchmarks/floors.py"],
    "layouts": ["benchmarks/layouts.py", "--layers=2", "--width=32", "--rounds=1"],
    "load_memory": ["benchmarks/load_memory.py", "--gigabytes=0.02"],
    "prefix_sharing": ["benchmarks/prefix_sharing.py"],
    "quantised": ["benchmarks/quantised.py"],
    "reward": ["-m", "benchmarks.reward", "--images=8", "--captions=2", "--rounds=1"],
    "sampling": ["benchmarks/sampling.py"],
    "zerocap": ["benchmarks/zerocap.py", "--images=1", "--candidates=16", "--tokens=2"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", LITTLE)
def test_benchmarks_run(name):
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, *LITTLE[name]], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


@pytest.mark.long
def test_the_smoke_test_of_full_size_runs_on_one_layer(tmp_path, workspace):
    """`train` of both stages, `export`, and transformers opens it."""
    command = [sys.executable, "benchmarks/full_size.py", "--layers=1", f"--dir={tmp_path}"]
    command.append(f"--tokenizer={workspace / 'models/mistral'}")
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (tmp_path / "llava" / "model.safetensors.index.json").is_file() or list(
        (tmp_path / "llava").glob("*.safetensors")
    )
