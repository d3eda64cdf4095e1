"""Runs and a dataset on disk in which every text is hostile: markup, quotes, and no place to break
a line."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib

import numpy as np
from PIL import Image

from har_jax.data.builder import write
from har_jax.data.dataset import Example
from har_jax.files import write_json
from har_jax.training.loggers import JsonLines

EVIL = "<script>window.owned=1</script>\"'><img src=x onerror=window.owned=1>{{ 7*7 }}" + "w" * 90
IN_A_NAME = EVIL.replace("/", "\\")
"""The same as a file may be called: no slash, so that its script never ends."""
SPLITS = {"train": 5, "val": 3}


def png(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(directory: pathlib.Path, text: str) -> pathlib.Path:
    """Two splits; images have from one caption to three, of one word to a few."""
    rows = [
        (split, Example(100 * k + i, text, png(100 * k + i), [f"a dog {text}"] + ["b"] * (i % 3)))
        for k, (split, n) in enumerate(SPLITS.items())
        for i in range(n)
    ]
    settings = {text: {text: [text]}, "images": text}
    write(directory, rows, name="toy", splits=list(SPLITS), description=text, settings=settings)
    card = json.loads((directory / "dataset.json").read_text())
    card |= {"ids": text, "made_by": text, "dropped": {text: 3}, "name": text}
    write_json(directory / "dataset.json", card | {"dropped_examples": {text: [text]}})
    return directory


def run(directory: pathlib.Path, text: str, *, data: pathlib.Path, value: float) -> pathlib.Path:
    """A run of every file, evaluated on the validation split; its figures depend on `value`."""
    config = {"stage": text, "steps": 40, "batch_size": text, "seed": text, text: {text: value}}
    write_json(directory / "config.json", config | {"data": {"dir": str(data), "val_split": "val"}})
    info = {
        "stage": text,
        "parent": {"run": text, "step": text},
        "reward_signature": f"{text}{value}",
        "base": {text: {"path": text, "fingerprint": text}},
        "versions": {text: text},
        "devices": text,
        "created": text,
    }
    write_json(directory / "run.json", info)
    with contextlib.closing(JsonLines(directory)) as lines:
        for step in range(1, 41):
            figures = {text: value / step, "train/loss": value / step, "train/bad_end_rate": 0.0}
            lines.write(step, {**figures, "train/learning_rate": 1e-5, "train/data_wait": 0.1})
        for step in (20, 40):
            lines.write(step, {"val/CIDEr": value - step / 100, "val/Bleu_4": 0.3, "val/loss": 2.0})
            shown = {"image_id": 100, "caption": text, "references": [text]}
            lines.samples(step, "val", [shown, shown | {"image_id": text}])
        lines.event(30, {"guard": text, "action": text, "text": text, "value": 31.0})
    scores = {
        "CIDEr": value,
        "Bleu_4": 0.3,
        "METEOR": None,
        "n_images": 3,
        "signature": text,
        "warnings": [text],
        "skipped": {text: text},
        "source": {"data": str(data), "split": "val", "method": text, "step": text},
        "control": {"CIDEr_shuffled": 0.5, "ratio": 0.5},
        "confidence": {
            "level": 0.95,
            "resamples": 1000,
            "intervals": {"CIDEr": [value - 0.1, value + 0.1], text: [text], "Bleu_4": text},
        },
    }
    row = {"caption": text, "references": [text], "CIDEr": value, "filename": text}
    rows = [{"image_id": 100 + i, **row} for i in range(3)]
    write_json(directory / "eval" / "val" / "scores.json", scores)
    write_json(directory / "eval" / "val" / "per_image.json", rows)
    return directory
