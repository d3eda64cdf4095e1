"""What a device makes of the full-size step: one command, about eight minutes on a GPU of 80 GB.

    python benchmarks/accelerator.py --out=figures.jsonl            # Mistral-7B and ViT-L/14
    python benchmarks/accelerator.py --size=tiny --out=figures.jsonl       # the same code, anywhere

Weights are random and born on the device, so nothing is downloaded. Each figure is written as soon
as it is had, so that a run that is cut short leaves what it measured: SCST and MLE steps (LoRA, a
bfloat16 and an int8 base, P=10 and P=257), tokens a second of a rollout against its rows, times to
compile, peak memory. `x_floor` is against the least time by the speed of products and the bandwidth
that are measured first, in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.config import Config, DataConfig, LoraConfig, ModelConfig, OptimConfig, ScstConfig
from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.weights import for_decoding
from har_jax.hardware import Chip, chip_of
from har_jax.loading.blueprint import Blueprint, draw
from har_jax.models.functional import Params
from har_jax.presets.published import CONFIGS
from har_jax.sessions.budget import floors, prefix_length
from har_jax.sessions.preflight import StandInReward
from har_jax.sessions.step import stage_loss, training_step
from har_jax.sharding import make_mesh

TINY = {
    "lm": dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "clip": dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
    ),
}


class Figures:
    """A file of JSON lines, each there as soon as it is known."""

    def __init__(self, path: pathlib.Path, common: dict[str, Any]):
        self._file, self._common = path.open("a", encoding="utf-8"), common

    def add(self, **figures: Any) -> None:
        line = json.dumps({**self._common, **figures})
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()


def directories(size: str, folder: pathlib.Path) -> dict[str, str]:
    """The two `config.json`s, in directories without weights."""
    names = {"lm": "Mistral-7B-v0.1", "clip": "clip-vit-large-patch14"}
    for part, name in names.items():
        config = json.loads(json.dumps(CONFIGS[name]))
        if size == "tiny":
            (config["vision_config"] if part == "clip" else config).update(TINY[part])
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return {part: str(folder / part) for part in names}


def configuration(size: str, where: dict[str, str], **changes: Any) -> Config:
    """B=64, K=5, T=20; of `--size=tiny` B=4."""
    model = ModelConfig(
        encoder=where["clip"],
        lm=where["lm"],
        dtype="bfloat16",
        frozen_dtype=changes.get("frozen_dtype", "bfloat16"),
        lora=LoraConfig(rank=16),
        projector=changes.get("projector", "patch"),
        prefix_tokens=9,  # and BOS: P=10
        remat="full",
    )
    return Config(
        stage=changes.get("stage", "scst"),
        init_from="-",
        batch_size=64 if size == "7b" else 4,
        microbatches=changes.get("microbatches", 1),
        data=DataConfig(max_tokens=20, captions_per_image=5),
        model=model,
        optim=OptimConfig(lr=1e-6),
        scst=ScstConfig(samples=5),
    )


def born(blueprint: Blueprint, mesh: Mesh) -> Params:
    """Random parameters, each in its shards, one at a time."""
    shardings = blueprint.shardings(mesh)

    def make(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        key = jax.random.key(hash(name) % 2**31)
        if name.endswith("scale"):
            value = jnp.ones(like.shape, like.dtype)
        elif jnp.issubdtype(like.dtype, jnp.integer):
            value = jax.random.randint(key, like.shape, 0, 120).astype(like.dtype)
        elif name.endswith("scales"):
            value = jnp.full(like.shape, 3e-4, like.dtype)
        else:
            value = (jax.random.normal(key, like.shape, jnp.bfloat16) * 0.02).astype(like.dtype)
        return value

    return {
        name: jax.jit(lambda n=name, x=x: make(n, x), out_shardings=shardings[name])()
        for name, x in blueprint.shapes.items()
    }


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Seconds of the first call, which compiles, and the median of those after it."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])


def ceilings(size: str) -> tuple[float, float]:
    """Operations a second of a bfloat16 product, and bytes a second of a copy."""
    n = 8192 if size == "7b" else 512
    x = jnp.ones((n, n), jnp.bfloat16)
    flops = 2 * n**3 / timed(lambda: _product(x), 5)[1]
    y = jnp.ones((n * n * (16 if size == "7b" else 1),), jnp.bfloat16)
    return flops, 2 * y.nbytes / timed(lambda: _copy(y), 5)[1]


_product = jax.jit(lambda x: x @ x)
_copy = jax.jit(lambda y: y + 1)


def peak_gib() -> float | None:
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def measure_step(figures: Figures, config: Config, chip: Chip, name: str, rounds: int) -> None:
    """A training step of one configuration."""
    mesh = make_mesh()
    blueprint = draw(config.model).placed_on(mesh)
    params = born(blueprint, mesh)
    trained = {n: params[n] for n in blueprint.trained}
    frozen = {n: x for n, x in params.items() if n not in trained}
    loss = stage_loss(blueprint, config, StandInReward())
    step = training_step(blueprint, config, loss, mesh)
    rng = np.random.default_rng(0)
    batch = {
        n: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else jnp.full(x.shape, config.data.max_tokens if n == "lengths" else 7, x.dtype)
        for n, x in blueprint.batch(config).items()
    }
    holder = [step.start(trained)]

    def once() -> Any:
        holder[0], output = step(holder[0], frozen, batch)
        return output.figures["loss"]

    with jax.set_mesh(mesh):
        first, seconds = timed(once, rounds)
    least = sum(phase.seconds(chip) for phase in floors(blueprint, config, mesh).values())
    figures.add(
        what=name,
        seconds=seconds,
        images_per_second=config.batch_size / seconds,
        compile_seconds=first - seconds,
        x_floor=seconds / least,
        peak_gib=peak_gib(),
    )


def measure_rollout(figures: Figures, config: Config, chip: Chip, rows: int, rounds: int) -> None:
    """Tokens a second of greedy and sampled rows, K=5."""
    mesh = make_mesh()
    blueprint = draw(config.model).placed_on(mesh)
    params = born(blueprint, mesh)
    b = max(1, rows // 6)
    features = jnp.zeros((b, *blueprint.config.features_shape), jnp.bfloat16)
    plan = DecodePlan(config.data.max_tokens, greedy=True, samples=5)

    @jax.jit
    def roll(params: Params, features: Any) -> Any:
        captioner = blueprint.structure.merge(params)
        cache = captioner.prefill(captioner.project(features))
        return decode(for_decoding(captioner), cache, plan, jax.random.key(0)).together.tokens

    with jax.set_mesh(mesh):
        first, seconds = timed(lambda: roll(params, features), rounds)
    config = dataclasses.replace(config, batch_size=b)
    phases = floors(blueprint, config, mesh)
    least = phases["prefill"].seconds(chip) + phases["rollout"].seconds(chip)
    tokens = b * 6 * config.data.max_tokens
    figures.add(
        what=f"rollout of {b * 6} rows",
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        compile_seconds=first - seconds,
        x_floor=seconds / least,
        peak_gib=peak_gib(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    figures = Figures(arguments.out, {"device": device.device_kind, "jax": jax.__version__})
    flops, bandwidth = ceilings(arguments.size)
    figures.add(what="ceilings", flops=flops, bandwidth=bandwidth)
    known = chip_of(device)
    name, memory = (known.name, known.memory) if known else (device.device_kind, 0.0)
    chip = Chip(name, device.device_kind, "cuda", memory, flops, bandwidth, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        where = directories(arguments.size, pathlib.Path(folder))
        for projector in ("pooled", "patch"):
            for base in ("bfloat16", "int8"):
                for stage in ("scst", "mle"):
                    parts = 1 if projector == "pooled" else 4
                    config = configuration(
                        arguments.size,
                        where,
                        stage=stage,
                        projector=projector,
                        frozen_dtype=base,
                        microbatches=parts,
                    )
                    p = prefix_length(draw(config.model))
                    told = f"{stage}, {base} base, P={p}, {parts} microbatches"
                    measure_step(figures, config, chip, told, arguments.rounds)
        config = configuration(arguments.size, where, projector="pooled")
        for rows in (48, 96, 192, 384, 768) if arguments.size == "7b" else (12,):
            measure_rollout(figures, config, chip, rows, arguments.rounds)


if __name__ == "__main__":
    main()
