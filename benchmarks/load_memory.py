"""Peak resident memory of loading a Mistral checkpoint over eight virtual CPU devices.

    python benchmarks/load_memory.py [--gigabytes=2] [--stored=float32] [--dtype=bfloat16]
        [--scan-layers]

Writes a random checkpoint of at least that size in the target dtype (several files with an index,
as transformers shards large models), then loads it in a fresh process, split over `fsdp`, and
prints the peak against the size of the parameters. The peak is the kernel's own count (VmHWM) of
the whole process, Python, JAX and mapped pages of the files included; `beyond` is what it is above
what the process held just before loading.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20


def memory(field: str) -> float:
    """MiB of `VmHWM` (peak) or `VmRSS` (now) of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")


def write_checkpoint(directory: pathlib.Path, gigabytes: float, stored: str, dtype: str) -> None:
    """Random numbers under Mistral's names, tensor by tensor; the model itself is never built."""
    import numpy as np
    from flax import nnx

    from har_jax.interchange import hf_dir, safetensors_file
    from har_jax.interchange.families.mistral import MISTRAL
    from har_jax.interchange.table import find
    from har_jax.models.decoders import Mistral, MistralConfig
    from har_jax.models.functional import structure_of

    config = MistralConfig(
        hidden_size=2048,
        intermediate_size=7168,
        num_attention_heads=16,
        num_hidden_layers=1,
        num_key_value_heads=8,
    )

    def shapes(layers: int) -> dict[str, tuple[int, ...]]:
        sized = dataclasses.replace(config, num_hidden_layers=layers)
        structure = structure_of(lambda: Mistral(sized, rngs=nnx.Rngs(0)))
        found = {}
        for path, spec in structure.shapes.items():
            row, name = find(MISTRAL.table, path)
            found[name] = row.hf_shape(spec.shape)
        return found

    width = safetensors_file.DTYPES[{"float32": "F32", "bfloat16": "BF16"}[dtype]].itemsize
    one, two = (sum(np.prod(s) for s in shapes(n).values()) * width for n in (1, 2))
    layers = max(1, 1 + int(-(-(gigabytes * 1e9 - one) // (two - one))))
    config = dataclasses.replace(config, num_hidden_layers=layers)
    kind = safetensors_file.DTYPES[{"float32": "F32", "bfloat16": "BF16"}[stored]]
    rng = np.random.default_rng(0)
    items = sorted(shapes(layers).items())
    half = len(items) // 2
    weight_map = {}
    for i, part in enumerate((items[:half], items[half:])):
        file = f"model-{i + 1:05}-of-00002.safetensors"

        def arrays(part: list = part) -> Iterator[tuple[str, np.ndarray]]:
            for name, shape in part:
                yield name, rng.standard_normal(shape, np.float32).astype(kind)

        specs = {name: (shape, kind) for name, shape in part}
        safetensors_file.write(directory / file, specs, arrays())
        weight_map |= dict.fromkeys(specs, file)
    hf_dir.write_json(directory / hf_dir.INDEX, {"weight_map": weight_map})
    hf_dir.write_json(directory / "config.json", MISTRAL.write(config))


def load(directory: pathlib.Path, dtype: str, scan_layers: bool) -> None:
    """In its own process: loads and prints one JSON line."""
    import jax
    import jax.numpy as jnp

    from har_jax.interchange.families.mistral import load_mistral
    from har_jax.models.functional import split
    from har_jax.sharding import make_mesh

    mesh = make_mesh(1, 8, 1)
    jax.block_until_ready(jnp.zeros(8, device=jax.devices()[0]))  # the runtime is up
    before, began = memory("VmRSS"), time.monotonic()
    model = load_mistral(directory, mesh=mesh, dtype=jnp.dtype(dtype), scan_layers=scan_layers)
    _, params = split(model)
    del model
    seconds = time.monotonic() - began
    size = sum(v.nbytes for v in params.values()) / MIB
    peak = memory("VmHWM")
    print(
        json.dumps(
            {
                "parameters_mib": round(size),
                "peak_mib": round(peak),
                "ratio": round(peak / size, 3),
                "beyond_mib": round(peak - before),
                "ratio_beyond": round((peak - before) / size, 3),
                "held_before_mib": round(before),
                "held_after_mib": round(memory("VmRSS") - before),
                "seconds": round(seconds, 1),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--stored", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--scan-layers", action="store_true")
    parser.add_argument("--load", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load, args.dtype, args.scan_layers)
        return
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, str(ROOT))
        write_checkpoint(pathlib.Path(directory), args.gigabytes, args.stored, args.dtype)
        command = [sys.executable, __file__, f"--load={directory}", f"--dtype={args.dtype}"]
        command += ["--scan-layers"] * args.scan_layers
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"stored as {args.stored}, loaded as {args.dtype} on 8 devices: {json.dumps(result)}")


if __name__ == "__main__":
    main()
