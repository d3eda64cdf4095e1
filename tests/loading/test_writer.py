"""Captions of any number of images on a mesh of eight: batches need not divide, nor seeds meet."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from har_jax.config import Config, ModelConfig
from har_jax.data.dataset import open_split
from har_jax.data.images import Preprocessor
from har_jax.data.protocols import Part
from har_jax.decoding.settings import DecodeSettings
from har_jax.evaluation.run import write_captions
from har_jax.loading.blueprint import draw
from har_jax.loading.loaded import LoadedCaptioner, batch_seed
from har_jax.loading.weights import load_frozen, new_trained
from har_jax.loading.writer import CaptionerWriter
from har_jax.sharding import MESH_AXES
from har_jax.text.tokenizer import load_tokenizer
from tests.helpers import long

MESHES = {"fsdp": (1, 8, 1), "all three": (2, 2, 2)}


@pytest.fixture(scope="module")
def captioner_on(workspace):
    """The workspace's captioner, with a random projector, on a mesh of these sizes."""
    models = workspace / "models"
    model = ModelConfig(encoder=str(models / "clip-l"), lm=str(models / "mistral"))
    blueprint = draw(model)

    @functools.cache  # with what it has compiled
    def load(data: int, fsdp: int, tensor: int) -> LoadedCaptioner:
        sizes, auto = (data, fsdp, tensor), (AxisType.Auto,) * 3
        devices = jax.devices()[: math.prod(sizes)]
        mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
        params = load_frozen(blueprint, mesh) | new_trained(blueprint, 0, mesh)
        return LoadedCaptioner(
            blueprint,
            params,
            load_tokenizer(models / "mistral"),
            Preprocessor.from_hf(models / "clip-l"),
            mesh,
            Config(model=model),
            {},
            0,
        )

    return load


CASES = {
    (mesh, count, batch_size)
    for mesh in MESHES
    for count, batch_size in [(13, 50), (13, 5), (1, None)]
}
FEW = [("all three", 13, 5), ("fsdp", 1, None)]


@pytest.mark.parametrize("case", [*FEW, *long(sorted(CASES - set(FEW), key=str))], ids=str)
def test_a_batch_that_the_mesh_does_not_divide(captioner_on, workspace, case):
    mesh, count, batch_size = case
    images = Part(open_split(workspace / "data", "val"), 0, count)
    alone = write_captions(CaptionerWriter(captioner_on(1, 1, 1), batch_size=4), images)
    captioner = captioner_on(*MESHES[mesh])
    assert write_captions(CaptionerWriter(captioner, batch_size=batch_size), images) == alone
    encoded = [images.read(i) for i in range(count)]
    assert captioner.generate(encoded, batch_size=batch_size) == list(alone.texts.values())


def test_batches_of_samples_share_no_seed(captioner_on, workspace):
    """Captions drawn with seed 0 from the second batch on are not those of seed 1, and so on."""
    seeds = {batch_seed(seed, number) for seed in range(50) for number in range(200)}
    assert len(seeds) == 50 * 200
    captioner = captioner_on(1, 1, 1)
    image = open_split(workspace / "data", "val").read(0)
    how = {"method": "sample", "batch_size": 4, "temperature": 5.0}
    zero, one = (captioner.generate([image] * 12, seed=seed, **how) for seed in (0, 1))
    drawn = [tuple(texts[start : start + 4]) for texts in (zero, one) for start in (0, 4, 8)]
    assert len(set(drawn)) == 6, json.dumps(drawn)
    assert captioner.generate([image] * 12, seed=0, **how) == zero


def test_generated_tokens_need_not_divide(captioner_on):
    captioner = captioner_on(1, 8, 1)
    side = captioner.preprocessor.crop_size[0]
    pixels = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    tokens, lengths = captioner.generate_tokens(pixels)
    assert tokens.shape[0] == lengths.shape[0] == 3
    how = DecodeSettings("greedy")
    eight, _ = captioner.run_batch(np.concatenate([pixels, pixels[:1].repeat(5, 0)]), how, 0)
    np.testing.assert_array_equal(tokens, eight[:3])
