"""The benchmark for accelerators runs, on models of a few numbers, where there is none."""

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
