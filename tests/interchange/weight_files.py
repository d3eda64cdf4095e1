"""Small models, their files, and what tests do to these."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.encoders.clip import CLIPConfig, TextConfig, VisionConfig
from har_jax.models.functional import split
from tests import helpers
from tests.helpers import initialise

LM = dataclasses.replace(helpers.LM, vocab_size=32)
CLIP_CONFIG = CLIPConfig(
    VisionConfig(8, 12, 1, 2, image_size=8, patch_size=4),
    TextConfig(8, 12, 1, 2, vocab_size=20, max_position_embeddings=6, eos_token_id=19),
    projection_dim=6,
)
NORM = "model.norm.weight"


def random(cls, config):
    """Drawn in one compiled function; op by op it takes seconds."""
    structure, params = initialise(lambda key: cls(config, rngs=nnx.Rngs(key)), 0)
    return structure.merge(params)


def tensors_of(directory) -> dict[str, np.ndarray]:
    return dict(safetensors.numpy.load_file(directory / "model.safetensors"))


def put(directory, tensors, name="model.safetensors") -> None:
    safetensors.numpy.save_file(tensors, directory / name, {"format": "pt"})


def shard(directory) -> None:
    """Two files and an index, as transformers writes large models."""
    tensors = tensors_of(directory)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        put(directory, {n: tensors[n] for n in part}, file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def same(a, b) -> bool:
    a, b = split(a)[1], split(b)[1]
    return a.keys() == b.keys() and all((np.asarray(a[k]) == np.asarray(b[k])).all() for k in a)


def message(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text
