"""Mistral-7B and ViT-L/14 of random weights, on one machine: a step of each stage, and the export.

    python benchmarks/full_size.py --dir=DIR --tokenizer=DIR     # 32 GB of disk, 20 GiB of memory
    python benchmarks/full_size.py --dir=DIR --tokenizer=DIR --layers=2    # a minute

Makes two Hugging Face directories, draws a dataset of a few scenes, and runs the commands that a
user would: `train` for one step of each stage (B=1, K=2, T=6, an int8 decoder and LoRA), then
`export`, and opens that with transformers. The memory told is the largest of each process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.interchange import safetensors_file
from har_jax.interchange.families.clip import VISION_FAMILY
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.interchange.table import sources
from har_jax.presets.published import CONFIGS

SETTINGS = [
    f"--config.{setting}"
    for setting in (
        "batch_size=1",
        "steps=1",
        "log_every=1",
        "checkpoint_every=1",
        "data.max_tokens=6",
        "data.captions_per_image=2",
        "data.val_split=",
        "eval.every=0",
        "eval.clip_score=",
        "model.dtype=bfloat16",
        "model.frozen_dtype=int8",
        "model.lora.rank=8",
        "model.scan_layers=true",
        "model.remat=full",
        "optim.name=adamw",
        "optim.warmup_steps=0",
    )
]


def write_weights(directory: pathlib.Path, name: str, layers: int | None, tokenizer: str) -> None:
    """A directory of random bfloat16 weights, tensor by tensor."""
    if (directory / "model.safetensors").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(CONFIGS[name]))
    where = config.get("vision_config", config)
    if layers:
        where["num_hidden_layers"] = layers
    (directory / "config.json").write_text(json.dumps(config))
    family: Family[Any] = MISTRAL if config["model_type"] == "mistral" else VISION_FAMILY
    described = family.read_config(directory)
    table, structure = family.table, family.structure(described, "bfloat16")
    specs, fills = {}, {}
    for path, like in structure.shapes.items():
        (source,) = sources(table, path, like.shape)
        shape = source.row.hf_shape(like.shape)
        specs[source.hf] = (shape, jnp.dtype(jnp.bfloat16))
        fills[source.hf] = (
            "ones" if path.endswith("scale") else "drawn" if len(shape) > 1 else "zeros"
        )
    rng = np.random.default_rng(0)
    some = (rng.standard_normal(1 << 22) * 0.02).astype(jnp.bfloat16)

    def arrays():
        for hf, (shape, dtype) in specs.items():
            kind = {"ones": np.ones, "zeros": np.zeros}.get(fills[hf])
            # Four million numbers, over and over: drawing seven billion takes too long.
            yield hf, kind(shape, dtype) if kind else np.resize(some, shape)

    safetensors_file.write(directory / "model.safetensors", specs, arrays())
    if tokenizer:
        for file in pathlib.Path(tokenizer).glob("*token*"):
            (directory / file.name).write_bytes(file.read_bytes())
    if family is VISION_FAMILY:
        size = where["image_size"]
        (directory / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "image_processor_type": "CLIPImageProcessor",
                    "do_resize": True,
                    "size": {"shortest_edge": size},
                    "resample": 3,
                    "do_center_crop": True,
                    "crop_size": {"height": size, "width": size},
                    "do_rescale": True,
                    "rescale_factor": 1 / 255,
                    "do_normalize": True,
                    "image_mean": [0.48145466, 0.4578275, 0.40821073],
                    "image_std": [0.26862954, 0.26130258, 0.27577711],
                    "do_convert_rgb": True,
                }
            )
        )


def run(*command: str) -> None:
    """Runs a command, and tells how long it took and how much memory it held at most."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    name = " ".join(part for part in command[:3] if not part.startswith("-c"))
    print(f"{name}: {seconds:.0f} s, at most {usage.ru_maxrss / 2**20:.1f} GiB", flush=True)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, help="of each network; default: all")
    parser.add_argument("--tokenizer", required=True, help="HF directory with Mistral's tokenizer")
    arguments = parser.parse_args()
    d = arguments.dir
    d.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    write_weights(d / "lm", "Mistral-7B-v0.1", arguments.layers, arguments.tokenizer)
    write_weights(d / "clip", "clip-vit-large-patch14", arguments.layers, "")
    print(f"weights written: {time.perf_counter() - began:.0f} s", flush=True)
    if not (d / "data").exists():
        run(
            "-m",
            "har_jax.prepare",
            "scenes",
            f"--out={d / 'data'}",
            "--train=12",
            "--val=4",
            "--test=4",
        )
    models = [f"--config.model.encoder={d / 'clip'}", f"--config.model.lm={d / 'lm'}"]
    common = [*models, f"--config.data.dir={d / 'data'}", *SETTINGS]
    run("-m", "har_jax.train", "--config=mle:tiny", f"--workdir={d / 'mle'}", *common)
    refine = ["--config.scst.samples=2", "--config.scst.doctor=off", "--config.guards.kl=off"]
    refine += ["--config.guards.clip=off", f"--config.init_from={d / 'mle'}"]
    run("-m", "har_jax.train", "--config=scst:tiny", f"--workdir={d / 'scst'}", *common, *refine)
    run(
        "-m",
        "har_jax.export",
        f"--checkpoint={d / 'scst'}",
        "--step=latest",
        f"--out={d / 'llava'}",
    )
    opened = (
        "import torch, transformers as t; m = t.LlavaForConditionalGeneration.from_pretrained("
        f"{str(d / 'llava')!r}, dtype=torch.bfloat16); print(m.num_parameters())"
    )
    run("-c", opened)


if __name__ == "__main__":
    main()
