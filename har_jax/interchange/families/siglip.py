"""SigLIP, and SigLIP 2 of one size of images, from and to Hugging Face directories."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import Keys
from har_jax.interchange.families.family import Family, TwoTowers
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.table import Row, linear, norm, tower_layers
from har_jax.models.encoders.siglip import (
    Siglip,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextTower,
    SiglipVisionConfig,
    SiglipVisionTower,
)
from har_jax.text.siglip_tokenizer import load_siglip_tokenizer

_HARMLESS = HARMLESS | {"tie_word_embeddings"}  # a SigLIP has no output layer


def _keys(tower: type, *model_types: str) -> Keys:
    return Keys(
        used=typing.get_type_hints(tower, include_extras=True),
        fixed={**FIXED, "model_type": model_types},
        # LLaVA's vision towers tell of a vocabulary and a projection, which nothing reads.
        harmless=(_HARMLESS | {"projection_dim", "vocab_size"}) - {"model_type"},
        why=WHY,
    )


_VISION = _keys(SiglipVisionConfig, "siglip_vision_model")
_TEXT = _keys(SiglipTextConfig, "siglip_text_model")
_WHOLE = Keys(
    used=dict.fromkeys(("text_config", "vision_config"), dict[str, Any] | None),
    fixed=FIXED,
    harmless=_HARMLESS,
    why=WHY,
)


def _read(keys: Keys, hf: Mapping[str, Any], where: str) -> dict[str, Any]:
    return keys.read({k: v for k, v in hf.items() if v is not None}, where)


def read_siglip(hf: Mapping[str, Any], where: str = "SigLIP config") -> SiglipConfig:
    """From the `config.json` of both towers.

    Raises:
      UserError: a number out of its range, or a key that changes, or may change, what is computed.
    """
    found = _WHOLE.read(hf, where)
    vision, text = found.get("vision_config") or {}, found.get("text_config") or {}
    return SiglipConfig(
        SiglipVisionConfig(**_read(_VISION, vision, f"{where}: vision_config")),
        SiglipTextConfig(**_read(_TEXT, text, f"{where}: text_config")),
    )


def read_vision(hf: Mapping[str, Any], where: str = "SigLIP config") -> SiglipVisionConfig:
    """Of the vision tower, from a whole SigLIP or its vision part."""
    if hf.get("model_type") == "siglip":
        return read_siglip(hf, where).vision
    return SiglipVisionConfig(**_read(_VISION, hf, where))


def write_vision(config: SiglipVisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        **dataclasses.asdict(config),
    }


def write_siglip(config: SiglipConfig) -> dict[str, Any]:
    """A `config.json` that `transformers.SiglipModel` reads."""
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **dataclasses.asdict(config.text)},
        "vision_config": {
            "model_type": "siglip_vision_model",
            **dataclasses.asdict(config.vision),
        },
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


def text_table(path: str = "") -> list[Row]:
    hf, embeddings = "text_model.", "text_model.embeddings."
    tokens, positions = f"{path}token_embedding.embedding", f"{path}position_embedding"
    return [
        Row(f"{embeddings}token_embedding.weight", tokens, "v d -> v d"),
        Row(f"{embeddings}position_embedding.weight", positions, "t d -> t d"),
        *tower_layers(f"{hf}encoder.layers.{{}}", f"{path}layers.{{}}"),
        *norm(f"{hf}final_layer_norm", f"{path}final_norm", bias=True),
        *linear(f"{hf}head", f"{path}head", bias="f -> f"),
    ]


_BUFFERS = r"(.*\.)?position_ids"

SIGLIP_FAMILY: Family[SiglipConfig] = Family(
    ("siglip",),
    read_siglip,
    write_siglip,
    lambda config, rngs, dtype: Siglip(config, rngs=rngs, dtype=dtype),
    [
        Row("logit_scale", "logit_scale", "() ->"),
        Row("logit_bias", "logit_bias", "() ->"),
        *vision_table(path="vision."),
        *text_table("text."),
    ],
    lambda config: _BUFFERS,
)

SIGLIP_VISION: Family[SiglipVisionConfig] = Family(
    ("siglip_vision_model", "siglip"),
    read_vision,
    write_vision,
    lambda config, rngs, dtype, **options: SiglipVisionTower(
        config, rngs=rngs, dtype=dtype, **options
    ),
    vision_table(),
    lambda config: rf"{_BUFFERS}|text_model\..*|logit_scale|logit_bias",
    {"vision_model.": ("",)},
)

_TEXT_FAMILY: Family[SiglipTextConfig] = Family(
    ("siglip",),
    lambda hf, where: read_siglip(hf, where).text,
    lambda config: write_siglip(SiglipConfig(text=config)),
    lambda config, rngs, dtype: SiglipTextTower(config, rngs=rngs, dtype=dtype),
    text_table(),
    lambda config: rf"{_BUFFERS}|vision_model\..*|logit_scale|logit_bias",
)


def _width(config: SiglipConfig) -> int:
    vision, text = config.vision, config.text
    if not vision.pools or vision.hidden_size != text.width:
        wide = f"has {vision.hidden_size} numbers" if vision.pools else "has no pooling head"
        raise UserError(
            f"this SigLIP cannot compare images with texts: its vision tower {wide} and its text "
            f"tower gives {text.width} numbers; give a whole SigLIP as it was trained"
        )
    return text.width


SIGLIP_TOWERS: TwoTowers[SiglipConfig] = TwoTowers(
    "SigLIP",
    SIGLIP_FAMILY,
    {
        "vision": (SIGLIP_VISION, lambda config: config.vision),
        "text": (_TEXT_FAMILY, lambda config: config.text),
    },
    _width,
    lambda directory, config: load_siglip_tokenizer(directory, config.text.max_position_embeddings),
    lambda config: config.text.vocab_size,
)

load_siglip, save_siglip = SIGLIP_FAMILY.load, SIGLIP_FAMILY.save_module
