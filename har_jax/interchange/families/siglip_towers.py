"""A whole SigLIP, which scores captions, from and to Hugging Face directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.interchange.families.family import Family, TwoTowers
from har_jax.interchange.families.keys import keys_of, read_present
from har_jax.interchange.families.siglip import BUFFERS, KEYS, SIGLIP_VISION, WHOLE, vision_table
from har_jax.interchange.table import Row, linear, norm, tower_layers
from har_jax.models.encoders.siglip import SiglipVisionConfig
from har_jax.models.encoders.siglip_text import (
    Siglip,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextTower,
)
from har_jax.text.siglip_tokenizer import load_siglip_tokenizer

_TEXT = keys_of(
    SiglipTextConfig, fixed={"model_type": ("siglip_text_model",)}, harmless=("projection_dim",)
)


def read_siglip(hf: Mapping[str, Any], where: str = "SigLIP config") -> SiglipConfig:
    """From the `config.json` of both towers, as `read_present` does."""
    found = WHOLE.read(hf, where)
    vision, text = found.get("vision_config") or {}, found.get("text_config") or {}
    return SiglipConfig(
        SiglipVisionConfig(**read_present(KEYS, vision, f"{where}: vision_config")),
        SiglipTextConfig(**read_present(_TEXT, text, f"{where}: text_config")),
    )


def write_siglip(config: SiglipConfig) -> dict[str, Any]:
    """A `config.json` that `transformers.SiglipModel` reads."""
    text, vision = dataclasses.asdict(config.text), dataclasses.asdict(config.vision)
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **text},
        "vision_config": {"model_type": "siglip_vision_model", **vision},
    }


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


SIGLIP_FAMILY: Family[SiglipConfig] = Family(
    ("siglip",),
    read_siglip,
    write_siglip,
    Siglip,
    [
        Row("logit_scale", "logit_scale", "() ->"),
        Row("logit_bias", "logit_bias", "() ->"),
        *vision_table(path="vision."),
        *text_table("text."),
    ],
    lambda config: BUFFERS,
)

_TEXT_FAMILY: Family[SiglipTextConfig] = Family(
    ("siglip",),
    lambda hf, where: read_siglip(hf, where).text,
    lambda config: write_siglip(SiglipConfig(text=config)),
    SiglipTextTower,
    text_table(),
    lambda config: rf"{BUFFERS}|vision_model\..*|logit_scale|logit_bias",
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
