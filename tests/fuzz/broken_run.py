"""A finished run, made without training, and ways to break its files."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np

from har_jax.checkpoint import Checkpoints
from har_jax.config import Config
from har_jax.data import overlap
from har_jax.data.overlap import ImageSet
from har_jax.presets import scst
from har_jax.training.loggers import JsonLines
from har_jax.training.run_dir import open_run, run_info
from tests.fuzz import hostile

PARAMS = {"lm.a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "projector.b": np.ones(2, "f4")}
SCORES = {
    "CIDEr": 0.5, "Bleu_4": 0.25, "CLIPScore": None, "n_images": 2, "signature": "s",
    "health": {"bad_end_rate": 0.1}, "warnings": ["w"], "source": {"data": "d", "split": "test"},
    "confidence": {"level": 0.95, "metrics": {"CIDEr": {"low": 0.1, "high": 0.9}}}, "skipped": {},
}  # fmt: skip


def state(step: int) -> tuple[Any, Any]:
    params = {name: jnp.asarray(value) + step for name, value in PARAMS.items()}
    return params, (jnp.zeros((), jnp.int32), {name: x * 2 for name, x in params.items()})


def info_of(config: Config) -> dict[str, Any]:
    base = {"lm": {"path": "l", "fingerprint": "sha256:1"}, "tokenizer": {"fingerprint": "t"}}
    return run_info(
        config, base=base, parent={"run": "runs/mle", "step": 3, "stage": "mle"},
        reward_signature="r", data={"path": "d", "images": 3},
        parameters={"total": 8, "trained": 8},
    )  # fmt: skip


def make(run: pathlib.Path) -> Config:
    """Steps 2, 4 (the best) and 6."""
    config = scst.TINY
    open_run(run, config, info_of(config))
    overlap.save(run, [ImageSet("coco", frozenset([1, 2]), frozenset([3, 4]))])
    log = JsonLines(run)
    for step in (2, 4, 6):
        log.write(step, {"train/loss": 1.0 / step, "train/reward": 0.5, "val/CIDEr": 0.4})
        caption = {"image_id": step, "caption": "a dog", "references": ["a dog runs", "dogs"]}
        log.samples(step, "val", [caption])
    log.event(4, {"guard": "length", "action": "warn", "text": "too long", "value": 1.0})
    log.close()
    checkpoints = Checkpoints(run)
    for step, cider in ((4, 0.9), (6, 0.7)):
        progress = {"data": {"next": step}, "seed": 0, "guards": {"start": {}, "lr_scale": 1.0}}
        checkpoints.save(step, *state(step), progress, {"CIDEr": cider})
    checkpoints.wait()
    checkpoints.close()
    scored = run / "eval" / "test"
    scored.mkdir(parents=True)
    rows = [
        {
            "image_id": i,
            "caption": "a dog",
            "references": ["a dog", "dogs"],
            "CIDEr": 0.5,
            "filename": "f",
        }
        for i in (1, 2)
    ]
    for name, value in (("scores", SCORES), ("per_image", rows), ("predictions", rows)):
        (scored / f"{name}.json").write_text(json.dumps(value))
    return config


def breaks(rng: random.Random, run: pathlib.Path, under: str = "**/*", times: int = 0) -> list[str]:
    """Breaks one or two of a run's files; returns which."""
    files = sorted(path for path in run.glob(under) if path.is_file())
    chosen = rng.sample(files, min(len(files), times or rng.choice([1, 1, 2])))
    for path in chosen:
        data = path.read_bytes()
        kind = rng.randrange(10)
        path.unlink()
        if kind == 0:
            continue
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to(run / "nowhere")
        elif kind < 5 or not _is_json(data):
            path.write_bytes(hostile.damaged(rng, data))
        else:
            lines = [json.loads(line) for line in data.splitlines()] if b"}\n{" in data else None
            if lines is None:
                path.write_bytes(hostile.json_bytes(rng, json.loads(data)))
            else:
                lines[rng.randrange(len(lines))] = hostile.damaged_json(rng, lines[0])
                text = "".join(
                    json.dumps(line, ensure_ascii=rng.random() < 0.5) + "\n" for line in lines
                )
                path.write_bytes(text.encode(errors="surrogatepass"))
    return [str(path.relative_to(run)) for path in chosen]


def _is_json(data: bytes) -> bool:
    return data[:1] in (b"{", b"[") and data.rstrip()[-1:] in (b"}", b"]")


def copy(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(run, to)
    return to
