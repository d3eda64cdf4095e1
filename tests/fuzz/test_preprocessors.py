"""What a directory says of its images: read, or refused in a line; what is read, works."""

from __future__ import annotations

import json
import pathlib
import random

from PIL import Image

from har_jax.data.images import Preprocessor
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

WHOLE = Preprocessor.for_size(32).to_hf()
MORE = ["do_pad", "size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample"]


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    config = dict(WHOLE)
    for _ in range(rng.choice([0, 1, 1, 2])):
        config[rng.choice(MORE)] = hostile.value(rng)
    inside = rng.random() < 0.3
    whole = {"processor_class": "CLIPProcessor", "image_processor": config} if inside else config
    data = json.dumps(whole).encode() if rng.random() < 0.4 else hostile.json_bytes(rng, whole)
    name = "processor_config.json" if inside else "preprocessor_config.json"
    (folder / name).write_bytes(data)

    def call() -> None:
        found = Preprocessor.from_hf(folder)
        assert Preprocessor.from_hf(folder) == found and found.fingerprint
        if max(*found.size, *found.crop_size) <= 256:
            found(Image.new("RGB", (40, 30)))

    return Case(call)


def test_configs(tmp_path, record_property):
    attempt("preprocessor configs", 500, draw, tmp_path, record_property)
