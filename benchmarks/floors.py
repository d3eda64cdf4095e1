"""The least time of a step of 7B on a device, by arithmetic: no device is asked.

    python benchmarks/floors.py

Two operations for each number of a matrix and token forward, two more backward for the inputs, two
for the weights where they learn; the weights of the decoder and the keys and values are read for
each token that is written. Peak speeds are the data sheets' (`har_jax/hardware.py`).
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from typing import Literal

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.config import Config, DataConfig, LoraConfig, ModelConfig, ScstConfig
from har_jax.hardware import CHIPS
from har_jax.loading.blueprint import draw
from har_jax.presets.published import described
from har_jax.sessions.budget import floors
from har_jax.sharding import MESH_AXES

IMAGES = 113_287
ROWS: list[tuple[Literal["mle", "scst"], Literal["pooled", "patch"], int]] = [
    ("scst", "pooled", 16),
    ("scst", "patch", 16),
    ("scst", "patch", 0),
    ("mle", "patch", 16),
]
"""Stage, projector and rank of LoRA; 0: all weights learn."""


def main() -> None:
    mesh = jax.make_mesh((1, 1, 1), MESH_AXES, devices=jax.devices()[:1])
    chips = {chip.name: chip for chip in CHIPS}
    print("| chip | step | encode | prefill | rollout | update | together | COCO, an epoch |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("h100", "a100", "v5p", "v6e", "v5e"):
        for stage, projector, rank in ROWS:
            model = ModelConfig(
                encoder="clip-vit-large-patch14",
                lm="Mistral-7B-v0.1",
                dtype="bfloat16",
                frozen_dtype="bfloat16",
                projector=projector,
                prefix_tokens=9,
                lora=LoraConfig(rank=rank),
            )
            config = Config(
                stage=stage,
                batch_size=64,
                model=model,
                data=DataConfig(max_tokens=20),
                scst=ScstConfig(samples=5),
            )
            with tempfile.TemporaryDirectory() as folder:
                config = described(config, pathlib.Path(folder))
                phases = floors(draw(config.model), config, mesh)
            times = {phase: p.seconds(chips[name]) * 1e3 for phase, p in phases.items()}
            total = sum(times.values())
            cells = [
                f"{times[p]:,.0f} ms" if p in times else ""
                for p in ("encode", "prefill", "rollout", "update")
            ]
            told = f"{stage}, P={10 if projector == 'pooled' else 257}, "
            told += f"LoRA r={rank}" if rank else "all weights"
            epoch = IMAGES / 64 * total / 6e4
            print(f"| {name} | {told} | {' | '.join(cells)} | {total:,.0f} ms | {epoch:.0f} min |")


if __name__ == "__main__":
    main()
