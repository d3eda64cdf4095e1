"""A model that no process holds whole is saved as one process saves it, byte by byte."""

import os
import subprocess
import sys

import numpy as np

from har_jax.interchange import peft
from har_jax.interchange.families.mistral import load_mistral
from har_jax.interchange.families.registry import read_decoder
from har_jax.models.functional import split
from tests.conftest import ROOT, xla_flags
from tests.training.test_two_processes import free_port

SAVE = """
import pathlib, sys
import jax
from har_jax.distributed import join_processes
join_processes()
from har_jax.config import LoraConfig
from har_jax.interchange import peft
from har_jax.interchange.families.mistral import (load_mistral, save_mistral)
from har_jax.sharding import make_mesh

source, out = map(pathlib.Path, sys.argv[1:])
mesh = make_mesh(data=1, fsdp=4, tensor=2)
model = load_mistral(source, mesh=mesh, scan_layers=True)
kernel = model.layers.attn.q.kernel[...]
assert jax.process_count() == 2 and not kernel.is_fully_addressable
assert sum(s.data.size for s in kernel.addressable_shards) < kernel.size
save_mistral(model, out / "new")  # appears whole
(out / "there").mkdir(exist_ok=True)
save_mistral(model, out / "there")  # beside a tokenizer, say
factors = {"layers.attn.o.lora_a": kernel, "layers.attn.o.lora_b": kernel[:, 0].swapaxes(1, 2)}
(out / "adapters").mkdir(exist_ok=True)
peft.save_adapters(factors, LoraConfig(8), out / "adapters", base="base", lm=model.config)
"""


def test_two_processes_write_what_one_does(workspace, tmp_path):
    source = workspace / "models/mistral"
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(4),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(source), str(tmp_path)],
            cwd=ROOT,
            env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n----\n".join(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapters", "new", "there"]
    for name in ("model.safetensors", "config.json"):
        for where in ("new", "there"):
            assert (tmp_path / where / name).read_bytes() == (source / name).read_bytes(), name
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"model.safetensors", "config.json"}

    params = split(load_mistral(source, scan_layers=True))[1]
    kernel = params["layers.attn.q.kernel"]
    wanted = {"lora_a": kernel, "lora_b": kernel[:, 0].swapaxes(1, 2)}
    _, found = peft.read_adapters(tmp_path / "adapters", read_decoder(source))
    assert len(found) == 4
    for name, (row, tensor) in found.items():
        value = wanted[name[-6:]][int(name.split(".")[1])]
        np.testing.assert_array_equal(row.read(tensor.map(), value.shape), value, err_msg=name)
