"""Any JSON at all, read by the one reader of JSON."""

from __future__ import annotations

import pathlib
import random
from typing import Any

from har_jax.foreign import read_typed
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

WHOLE = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "n": 0.5}]}


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    path = folder / "a.json"
    path.write_bytes(hostile.json_bytes(rng, WHOLE))
    kind = rng.choice([dict[str, Any], dict[str, list[dict[str, int | float | str]]], list[int]])
    return Case(lambda: read_typed(path, kind, "captions"))


def test_json(tmp_path, record_property):
    attempt("JSON", 2000, draw, tmp_path, record_property)
