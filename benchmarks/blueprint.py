"""How long it takes to describe a captioner of full size from two `config.json`s, with no weights.

    python benchmarks/blueprint.py [--scan-layers] [--rounds=5]

ViT-L/14 and Mistral-7B as published, LoRA on a frozen bfloat16 decoder: every parameter's shape,
dtype and sharding, and a batch's shapes, in a fresh process each round; importing JAX is told
apart.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


def describe(directory: pathlib.Path, scan_layers: bool) -> None:
    """In its own process: draws the blueprint and prints two times, in seconds."""
    began = time.perf_counter()
    from har_jax.config import Config, DataConfig, LoraConfig, ModelConfig
    from har_jax.loading.blueprint import draw
    from har_jax.sharding import make_mesh

    imported = time.perf_counter()
    model = ModelConfig(
        encoder=str(directory / "clip"),
        lm=str(directory / "lm"),
        frozen_dtype="bfloat16",
        scan_layers=scan_layers,
        lora=LoraConfig(rank=16),
    )
    blueprint = draw(model)
    blueprint.shardings(make_mesh())
    blueprint.batch(Config(model=model, data=DataConfig(max_tokens=40)))
    n = sum(x.size for x in blueprint.shapes.values())
    print(json.dumps([imported - began, time.perf_counter() - imported, n]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scan-layers", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--describe", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.describe:
        describe(args.describe, args.scan_layers)
        return
    with tempfile.TemporaryDirectory() as made:
        directory = pathlib.Path(made)
        for name, config in (("clip", VISION), ("lm", {"model_type": "mistral"})):
            (directory / name).mkdir()
            (directory / name / "config.json").write_text(json.dumps(config))
        command = [sys.executable, __file__, f"--describe={directory}"]
        command += ["--scan-layers"] * args.scan_layers
        found = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(args.rounds)
        ]
    imports, seconds = (statistics.median(row[i] for row in found) for i in (0, 1))
    print(f"{found[0][2]:,} parameters described in {seconds:.2f} s (imports: {imports:.2f} s)")


if __name__ == "__main__":
    main()
