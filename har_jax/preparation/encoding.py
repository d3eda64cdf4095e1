"""Runs the frozen encoder once over a dataset: its feature cache (`data.features`)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from har_jax.data.dataset import Split
from har_jax.data.features.build import SHARD_BYTES, Build, Rows
from har_jax.data.features.cache import FeatureKind, Origin
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import Batch, image_batches
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import load_vision, read_vision_config
from har_jax.models.captioner import vision_features
from har_jax.models.encoders.clip import VisionTower
from har_jax.models.functional import split as split_module
from har_jax.models.functional import structure_of
from har_jax.sharding import batch_sharding, make_mesh, replicated


def plan_build(
    out: str | os.PathLike[str],
    clip: str,
    splits: Mapping[str, Split],
    *,
    kind: FeatureKind,
    layer: int,
    dtype: str,
    dataset: str,
    shard_bytes: int = SHARD_BYTES,
) -> Build:
    """What is to be made, after checking all that needs no device.

    Args:
      clip: HF directory of the encoder.
      layer: whose patch tokens; of no meaning for `pooled`.

    Raises:
      UserError: no CLIP there, or a layer that it does not have.
    """
    directory = hf_dir.resolve(clip)
    config = read_vision_config(directory)
    preprocessor = Preprocessor.from_hf(directory)
    structure = structure_of(lambda: VisionTower(config, rngs=nnx.Rngs(0)))
    size = config.image_size
    shape = jax.eval_shape(
        lambda params, images: vision_features(structure.merge(params), images, kind, layer),
        structure.shapes,
        jax.ShapeDtypeStruct((1, size, size, config.num_channels), jnp.float32),
    ).shape
    origin = Origin(
        str(clip),
        hf_dir.weights_fingerprint(directory),
        kind,
        layer if kind == "patch" else None,
        preprocessor.identity,
    )
    return Build(pathlib.Path(out), origin, shape[1:], dtype, splits, dataset, shard_bytes)


def encoder_rows(build: Build, *, batch_size: int) -> Rows:
    """Loads the encoder onto all devices of this process; features are computed in float32.

    `batch_size` images, rounded up to the number of devices, go through it at a time. Batches begin
    anew with every shard, so a shard does not depend on what was written before it.
    """
    clip, kind, layer = build.origin.encoder, build.origin.kind, build.origin.layer or 0
    preprocessor = Preprocessor.from_hf(hf_dir.resolve(clip))
    mesh = make_mesh(data=jax.device_count(), fsdp=1)
    structure, params = split_module(load_vision(clip, mesh=mesh))
    size = -(-batch_size // mesh.size) * mesh.size
    encode = jax.jit(
        lambda params, images: vision_features(structure.merge(params), images, kind, layer),
        out_shardings=replicated(mesh),
    )

    def rows(split: Split, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def on_device(batch: Batch) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
            with jax.set_mesh(mesh):
                images = jax.device_put(batch["image"], batch_sharding(mesh))
                features = encode(params, images)
            valid = batch["valid"]
            return lambda: (np.asarray(features)[valid], batch["digest"][valid])

        pending = None  # the device computes one batch while the one before is written
        for batch in image_batches(split, preprocessor, first, stop, batch_size=size):
            ahead = on_device(batch)
            if pending is not None:
                yield pending()
            pending = ahead
        if pending is not None:
            yield pending()

    return rows
