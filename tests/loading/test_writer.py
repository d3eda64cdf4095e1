"""Captions of any number of images on a mesh of eight: batches need not divide, nor seeds meet."""

import json

import numpy as np
import pytest

from har_jax.data.dataset import open_split
from har_jax.data.protocols import Part
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.evaluation.run import write_captions
from har_jax.loading.loaded import batch_seed
from har_jax.loading.writer import CaptionerWriter
from tests.helpers import long

MESHES = {"fsdp": (1, 8, 1), "all three": (2, 2, 2)}


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


def test_a_writer_writes_one_caption(captioner_on):
    with pytest.raises(UserError, match="num_return is 2, but a writer gives each image one"):
        CaptionerWriter(captioner_on(1, 1, 1), DecodeSettings("sample", num_return=2))
