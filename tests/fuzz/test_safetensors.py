"""Safetensors files with damaged headers and bytes; what is read, the reference reads too."""

from __future__ import annotations

import pathlib
import random

import numpy as np
import safetensors
import safetensors.numpy

from har_jax.interchange.safetensors_file import read_header
from tests.fuzz.harness import Case, attempt
from tests.fuzz.hf_models import damaged_safetensors

ARRAYS = {
    "model.embed_tokens.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model.norm.weight": np.ones(4, np.float16),
    "scalar": np.array(2.0),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(6),
}
WHOLE = safetensors.numpy.save(ARRAYS, {"format": "pt"})


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    file = folder / "model.safetensors"
    file.write_bytes(damaged_safetensors(rng, WHOLE))

    def call() -> None:
        tensors = read_header(file)
        for tensor in tensors.values():
            assert tensor.map().nbytes == tensor.nbytes
        with safetensors.safe_open(file, "np") as theirs:
            assert set(theirs.keys()) == tensors.keys()

    return Case(call)


def test_files(tmp_path, record_property):
    attempt("safetensors", 1500, draw, tmp_path, record_property)
