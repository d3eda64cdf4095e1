"""Logs and records of our own, read back after anything happened to them."""

from __future__ import annotations

import json
import pathlib
import random

from har_jax.data.protocols import Written
from har_jax.evaluation.kept import KeptWriter
from har_jax.experiments.costs import series_of
from har_jax.files import read_json_lines
from har_jax.training.loggers import JsonLines
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

ROWS = [
    {"step": 2, "time": 1.5, "train/loss": 2.0, "val/CIDEr": 0.5},
    {"step": 4, "time": 2.5, "event": {"guard": "length", "action": "warn"}},
    {"step": 4, "split": "val", "image_id": 1, "caption": "a dog", "references": ["a dog"]},
]
KEPT = [
    {"key": {"preset": "repo", "seed": 0}},
    {"image_id": 1, "caption": "a dog", "ended": True, "seconds": 0.5},
    {"image_id": 2, "caption": "a cat", "ended": False, "seconds": 0.5},
]


class Images:
    ids = [1, 2, 3]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> bytes:
        return b""


class Writer:
    def write(self, images):
        return (Written("a bird", True) for _ in images.ids)


def lines(rng: random.Random, rows: list) -> bytes:
    whole = [json.dumps(row).encode() for row in rows]
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(whole))
        whole[at] = hostile.json_bytes(rng, rows[at])
    data = b"\n".join(whole) + (b"\n" if rng.random() < 0.7 else b"")
    return hostile.damaged(rng, data) if rng.random() < 0.2 else data


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    if rng.random() < 0.4:
        path = folder / "captions.jsonl"
        path.write_bytes(lines(rng, KEPT))
        return Case(lambda: list(KeptWriter(Writer(), path, KEPT[0]["key"]).write(Images())))
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).write_bytes(lines(rng, ROWS))

    def call() -> None:
        log = JsonLines(folder)
        if rng.random() < 0.5:
            log.forget_validation(rng.choice([2, 4]))
        log.truncate_after(rng.choice([0, 2, 4]))
        log.write(5, {"train/loss": 1.0})
        log.close()
        rows = read_json_lines(folder / "metrics.jsonl")
        assert rows[-1]["step"] == 5 and rows[-1]["train/loss"] == 1.0
        series_of(rows)

    return Case(call)


def test_logs(tmp_path, record_property):
    attempt("logs and records", 500, draw, tmp_path, record_property)
