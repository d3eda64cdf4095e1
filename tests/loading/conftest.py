"""A captioner of miniature models, put together on any mesh."""

import functools
import math

import jax
import pytest
from jax.sharding import AxisType

from har_jax.config import Config, ModelConfig
from har_jax.data.images import Preprocessor
from har_jax.loading.blueprint import draw
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.weights import load_frozen, new_trained
from har_jax.sharding import MESH_AXES
from har_jax.text.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
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
