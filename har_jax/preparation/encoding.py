"""Runs the frozen encoder once over a dataset: its feature cache (`data.features`)."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from har_jax.config import VisionTokens
from har_jax.data.dataset import Split
from har_jax.data.features.build import SHARD_BYTES, Build, Rows
from har_jax.data.features.cache import FeatureKind, Origin
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import Batch, image_batches
from har_jax.interchange import hf_dir, hub
from har_jax.interchange.families.registry import load_encoder, read_encoder
from har_jax.models.captioner import vision_features
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params, Structure, structure_of
from har_jax.sharding import batch_sharding, make_mesh, replicated


def plan_build(
    out: str | os.PathLike[str],
    encoder: str,
    splits: Mapping[str, Split],
    *,
    kind: FeatureKind,
    layer: int,
    tokens: VisionTokens = "patches",
    dtype: str,
    dataset: str,
    compute_dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> Build:
    """What is to be made, after checking all that needs no device.

    Args:
      encoder: its HF directory, or its name on the hub.
      layer, tokens: whose tokens, and which of them; of no meaning for `pooled`.
      dtype: of the stored features.
      compute_dtype: of the encoder's activations.

    Raises:
      UserError: no encoder there, or a layer that it does not have.
    """
    encoder = hub.pinned(encoder)  # it is looked at again, and recorded
    directory = hf_dir.resolve(encoder)
    config, structure = _encoder(directory)
    shape = jax.eval_shape(
        lambda params, images: vision_features(
            structure.merge(params), images, kind, layer, tokens
        ),
        structure.shapes,
        jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.num_channels), "f4"),
    ).shape
    origin = Origin(
        str(encoder),
        hf_dir.weights_fingerprint(directory),
        kind,
        layer if kind == "patch" else None,
        Preprocessor.from_hf(directory).identity,
        compute_dtype,
        tokens if kind == "patch" else "patches",
    )
    return Build(pathlib.Path(out), origin, shape[1:], dtype, splits, dataset, shard_bytes)


def _encoder(directory: pathlib.Path) -> tuple[EncoderConfig, Structure[Any]]:
    """The configuration of an encoder, and its shapes in float32."""
    config = read_encoder(directory)

    def build() -> Any:  # an `Encoder`, and a module
        return config.build(rngs=nnx.Rngs(0), dtype="float32")

    return config, structure_of(build)


def encoder_rows(build: Build, *, batch_size: int) -> Rows:
    """Encodes on all devices of this process, in `build.origin.compute_dtype`.

    The encoder is loaded when it is first needed. `batch_size` images, rounded up to the number of
    devices, go through it at a time. Batches begin anew with every shard, so a shard does not
    depend on what was written before it.
    """
    origin = build.origin
    directory = hf_dir.resolve(origin.encoder)
    mesh = make_mesh(data=jax.device_count(), fsdp=1)
    size = -(-batch_size // mesh.size) * mesh.size

    @functools.cache
    def encoder() -> Callable[[np.ndarray], jax.Array]:
        config, structure = _encoder(directory)
        params = load_encoder(
            structure.shapes, structure.logical_axes, config, directory, mesh=mesh
        )

        @functools.partial(jax.jit, out_shardings=replicated(mesh))
        def encode(params: Params, images: jax.Array) -> jax.Array:
            pixels = images.astype(origin.compute_dtype)
            tower = structure.merge(params)
            return vision_features(tower, pixels, origin.kind, origin.layer or 0, origin.tokens)

        def encode_on_mesh(images: np.ndarray) -> jax.Array:
            with jax.set_mesh(mesh):
                return encode(params, jax.device_put(images, batch_sharding(mesh)))

        return encode_on_mesh

    def rows(split: Split, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def finished(batch: Batch, features: jax.Array) -> tuple[np.ndarray, np.ndarray]:
            valid = batch["valid"]
            return np.asarray(features)[valid], batch["digest"][valid]

        preprocessor = Preprocessor.from_hf(directory)
        pending = None  # the device computes one batch while the one before is written
        for batch in image_batches(split, preprocessor, first, stop, batch_size=size):
            ahead = batch, encoder()(batch["image"])
            if pending is not None:
                yield finished(*pending)
            pending = ahead
        if pending is not None:
            yield finished(*pending)

    return rows
