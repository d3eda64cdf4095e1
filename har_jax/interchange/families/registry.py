"""The decoders and encoders that a captioner can be built on, by the `model_type` of their
`config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import VISION_FAMILY
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params
from har_jax.sharding import LogicalAxes

DECODERS: dict[str, Family] = {name: family for family in (MISTRAL,) for name in family.model_types}
ENCODERS: dict[str, Family] = {
    name: family for family in (VISION_FAMILY,) for name in family.model_types
}


def family_of(config: DecoderConfig) -> Family:
    """The family that a decoder's configuration was read by."""
    return DECODERS[config.model_type]


def read_decoder(directory: Path) -> DecoderConfig:
    """The configuration of a directory's decoder; no weights are read."""
    model_type = hf_dir.read_config(directory, DECODERS)["model_type"]
    return DECODERS[model_type].read_config(directory)


def _encoder_family(directory: Path) -> Family:
    return ENCODERS[hf_dir.read_config(directory, ENCODERS)["model_type"]]


def read_encoder(directory: Path) -> EncoderConfig:
    """The configuration of a directory's encoder; no weights are read."""
    return _encoder_family(directory).read_config(directory)[0]


def load_encoder(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    logical_axes: Mapping[str, LogicalAxes],
    config: EncoderConfig,
    directory: Path,
    **placement: Any,
) -> Params:
    """The parameters of a tower without its projection, straight into their shards."""
    family = _encoder_family(directory)
    return family.load_params(shapes, logical_axes, (config, None), directory, **placement)
