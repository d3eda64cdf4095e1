"""CLIP from and to Hugging Face directories.

`load_vision` reads the vision tower alone, from a directory of a whole CLIP or of its vision part.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from har_jax.interchange import hf_dir
from har_jax.interchange.table import Row, linear, norm
from har_jax.interchange.weights import load, save
from har_jax.models.encoders.clip import CLIP, CLIPConfig, VisionConfig, VisionTower
from har_jax.sharding import Rules

_BUFFERS = r"(.*\.)?position_ids"
"""Written by transformers before 4.31; no weights."""


def _layers(hf: str, path: str) -> list[Row]:
    heads = {"axes": "(n h) d -> d n h", "bias": "(n h) -> n h"}
    out = {"axes": "d (n h) -> n h d", "bias": "d -> d"}
    dense = {"bias": "f -> f"}
    hf, path = f"{hf}encoder.layers.{{}}", f"{path}layers.{{}}"
    return [
        *norm(f"{hf}.layer_norm1", f"{path}.attn_norm", bias=True),
        *linear(f"{hf}.self_attn.q_proj", f"{path}.attn.q", **heads),
        *linear(f"{hf}.self_attn.k_proj", f"{path}.attn.k", **heads),
        *linear(f"{hf}.self_attn.v_proj", f"{path}.attn.v", **heads),
        *linear(f"{hf}.self_attn.out_proj", f"{path}.attn.o", **out),
        *norm(f"{hf}.layer_norm2", f"{path}.mlp_norm", bias=True),
        *linear(f"{hf}.mlp.fc1", f"{path}.mlp.up", **dense),
        *linear(f"{hf}.mlp.fc2", f"{path}.mlp.down", **dense),
    ]


def vision_table(hf: str = "vision_model.", path: str = "") -> list[Row]:
    """`hf` is what precedes the names in the file: nothing in transformers 5's CLIPVisionModel."""
    embeddings = f"{hf}embeddings."
    return [
        Row(f"{embeddings}class_embedding", f"{path}class_embedding", "d -> d"),
        Row(
            f"{embeddings}patch_embedding.weight",
            f"{path}patch_embedding.kernel",
            "d c p q -> p q c d",
        ),
        Row(f"{embeddings}position_embedding.weight", f"{path}position_embedding", "s d -> s d"),
        *norm(f"{hf}pre_layrnorm", f"{path}pre_norm", bias=True),  # the file's own spelling
        *_layers(hf, path),
        *norm(f"{hf}post_layernorm", f"{path}post_norm", bias=True),
        *linear("visual_projection", f"{path}projection"),
    ]


def clip_table() -> list[Row]:
    text, embeddings = "text_model.", "text_model.embeddings."
    return [
        Row("logit_scale", "logit_scale", "->"),
        *vision_table(path="vision."),
        Row(f"{embeddings}token_embedding.weight", "text.token_embedding.embedding", "v d -> v d"),
        Row(f"{embeddings}position_embedding.weight", "text.position_embedding", "t d -> t d"),
        *_layers(text, "text."),
        *norm(f"{text}final_layer_norm", "text.final_norm", bias=True),
        *linear("text_projection", "text.projection"),
    ]


def _vision_config(path: Path) -> tuple[VisionConfig, int]:
    hf = hf_dir.read_config(path, ["clip", "clip_vision_model"])
    if hf["model_type"] == "clip":
        whole = CLIPConfig.from_hf(hf)
        return whole.vision, whole.projection_dim
    return VisionConfig.from_hf(hf), hf.get("projection_dim", 512)


def read_vision_config(directory: str | os.PathLike[str]) -> VisionConfig:
    """The vision tower's configuration; no weights are read."""
    return _vision_config(hf_dir.resolve(directory))[0]


def load_clip(
    directory: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
    allow_nan: bool = False,
) -> CLIP:
    """A CLIP with both towers, parameters in `dtype` (None: as stored), sharded over `mesh`."""
    path = hf_dir.resolve(directory)
    config = CLIPConfig.from_hf(hf_dir.read_config(path, ["clip"]))
    return load(
        lambda: CLIP(config, rngs=nnx.Rngs(0)),
        path,
        clip_table(),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        ignore=_BUFFERS,
        allow_nan=allow_nan,
    )


def load_vision(
    directory: str | os.PathLike[str],
    *,
    projection: bool = False,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
    allow_nan: bool = False,
) -> VisionTower:
    """The vision tower alone, with `projection` or without; no text weights are read."""
    path = hf_dir.resolve(directory)
    config, projection_dim = _vision_config(path)
    bare = "embeddings.class_embedding" in hf_dir.open_weights(path)[0]
    ignore = rf"{_BUFFERS}|text_model\..*|text_projection\..*|logit_scale"
    return load(
        lambda: VisionTower(config, projection_dim if projection else None, rngs=nnx.Rngs(0)),
        path,
        vision_table("" if bare else "vision_model."),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        ignore=ignore if projection else rf"{ignore}|visual_projection\..*",
        allow_nan=allow_nan,
    )


def save_clip(model: CLIP, directory: str | os.PathLike[str]) -> None:
    """Writes a directory that `transformers.CLIPModel.from_pretrained` loads."""
    save(model, Path(directory), clip_table(), model.config.to_hf())
