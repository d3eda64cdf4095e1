"""The decoders and encoders that a captioner can be built on, and the networks that can score
captions, by the `model_type` of their `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from har_jax.data.images import Preprocessor
from har_jax.data.preprocessor_config import has_preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import CLIP_TOWERS, CLIP_VISION
from har_jax.interchange.families.dinov2 import DINOV2_FAMILY
from har_jax.interchange.families.family import Family, TwoTowers
from har_jax.interchange.families.gpt2 import GPT2_DECODER
from har_jax.interchange.families.llama import LLAMA
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.interchange.families.qwen2 import QWEN2
from har_jax.interchange.families.qwen3 import QWEN3
from har_jax.interchange.families.siglip import SIGLIP_VISION
from har_jax.interchange.families.siglip_towers import SIGLIP_TOWERS
from har_jax.interchange.families.smollm3 import SMOLLM3
from har_jax.interchange.families.unsupported import OTHER_DECODERS, OTHER_ENCODERS
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params
from har_jax.sharding import LogicalAxes

_DECODERS = (MISTRAL, LLAMA, SMOLLM3, QWEN2, QWEN3, GPT2_DECODER)
DECODERS: dict[str, Family] = {name: family for family in _DECODERS for name in family.model_types}
ENCODERS: dict[str, Family] = {
    name: family
    for family in (CLIP_VISION, SIGLIP_VISION, DINOV2_FAMILY)
    for name in family.model_types
}
SCORERS: dict[str, TwoTowers] = {
    name: row for row in (CLIP_TOWERS, SIGLIP_TOWERS) for name in row.whole.model_types
}


def family_of(config: DecoderConfig) -> Family:
    """The family that a decoder's configuration was read by."""
    return DECODERS[config.model_type]


def read_decoder(directory: Path) -> DecoderConfig:
    """The configuration of a directory's decoder; no weights are read."""
    model_type = hf_dir.read_config(directory, DECODERS, OTHER_DECODERS)["model_type"]
    return DECODERS[model_type].read_config(directory)


def read_encoder(directory: Path) -> EncoderConfig:
    """The configuration of a directory's encoder; no weights are read.

    Where `preprocessor_config.json` is beside it, it is that for the images that this makes: a
    tower may have been trained on others.
    """
    model_type = hf_dir.read_config(directory, ENCODERS, OTHER_ENCODERS)["model_type"]
    config = ENCODERS[model_type].read_config(directory)
    if not has_preprocessor(directory):
        return config
    return config.reading(*Preprocessor.from_hf(directory).output_size)


def encoder_family_of(config: EncoderConfig) -> Family:
    """The family that an encoder's configuration was read by."""
    return ENCODERS[config.model_type]


def load_encoder(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    logical_axes: Mapping[str, LogicalAxes],
    config: EncoderConfig,
    directory: Path,
    **placement: Any,
) -> Params:
    """The parameters of a tower alone, straight into their shards."""
    family = encoder_family_of(config)
    return family.load_params(shapes, logical_axes, config, directory, **placement)


def two_towers(directory: Path) -> TwoTowers:
    """What scores captions with a directory's network.

    Raises:
      UserError: the network embeds no texts.
    """
    model_type = hf_dir.read_config(directory, {**ENCODERS, **SCORERS}, OTHER_ENCODERS)[
        "model_type"
    ]
    if model_type not in SCORERS:
        raise UserError(
            f"{directory} holds a model of type {model_type!r}, which has no text tower, so it "
            f"cannot compare captions with images; give one of type "
            f"{' or '.join(map(repr, SCORERS))}"
        )
    return SCORERS[model_type]
