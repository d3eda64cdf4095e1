"""SigLIP's vision tower, and that of SigLIP 2 of one size of images, from and to Hugging Face
directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from har_jax.foreign import Keys
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import FIXED, OF_TOWERS, WHY, keys_of, read_present
from har_jax.interchange.table import Row, linear, norm, tower_layers
from har_jax.models.encoders.siglip import SiglipVisionConfig, SiglipVisionTower

KEYS = keys_of(
    SiglipVisionConfig,
    fixed={"model_type": ("siglip_vision_model",)},
    # LLaVA's vision towers tell of a vocabulary and a projection, which nothing reads.
    harmless=("projection_dim", "vocab_size"),
)
WHOLE = Keys(
    used=dict.fromkeys(("text_config", "vision_config"), dict[str, Any] | None),
    fixed=FIXED,
    harmless=OF_TOWERS,
    why=WHY,
)
BUFFERS = r"(.*\.)?position_ids"


def read(hf: Mapping[str, Any], where: str = "SigLIP config") -> SiglipVisionConfig:
    """Of the vision tower, from a whole SigLIP or its vision part, as `read_present` does."""
    if hf.get("model_type") == "siglip":
        hf, where = WHOLE.read(hf, where).get("vision_config") or {}, f"{where}: vision_config"
    return SiglipVisionConfig(**read_present(KEYS, hf, where))


def write(config: SiglipVisionConfig) -> dict[str, Any]:
    """The contents of a `config.json` that transformers reads."""
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": config.model_type,
        **dataclasses.asdict(config),
    }


def vision_table(hf: str = "vision_model.", path: str = "") -> list[Row]:
    """`hf` and `path` are what precedes the names in the file, and ours."""
    embeddings, head, pooling = f"{hf}embeddings.", f"{hf}head", f"{path}head"
    return [
        *linear(
            f"{embeddings}patch_embedding",
            f"{path}patch_embedding",
            axes="d c p q -> p q c d",
            bias="d -> d",
        ),
        Row(f"{embeddings}position_embedding.weight", f"{path}position_embedding", "s d -> s d"),
        *tower_layers(f"{hf}encoder.layers.{{}}", f"{path}layers.{{}}"),
        *norm(f"{hf}post_layernorm", f"{path}post_norm", bias=True),
        Row(f"{head}.probe", f"{pooling}.probe", "() () d -> d"),
        Row(f"{head}.attention.in_proj_weight", f"{pooling}.qkv.kernel", "(c n h) d -> d c n h"),
        Row(f"{head}.attention.in_proj_bias", f"{pooling}.qkv.bias", "(c n h) -> c n h"),
        *linear(
            f"{head}.attention.out_proj", f"{pooling}.o", axes="d (n h) -> n h d", bias="d -> d"
        ),
        *norm(f"{head}.layernorm", f"{pooling}.norm", bias=True),
        *linear(f"{head}.mlp.fc1", f"{pooling}.mlp.up", bias="f -> f"),
        *linear(f"{head}.mlp.fc2", f"{pooling}.mlp.down", bias="f -> f"),
    ]


SIGLIP_VISION: Family[SiglipVisionConfig] = Family(
    ("siglip_vision_model", "siglip"),
    read,
    write,
    SiglipVisionTower,
    vision_table(),
    lambda config: rf"{BUFFERS}|text_model\..*|logit_scale|logit_bias",
    {"vision_model.": ("",)},
)
