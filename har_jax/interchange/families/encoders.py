"""The encoders that a captioner can see with, by the `model_type` of their `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import VISION_FAMILY
from har_jax.interchange.families.family import Family
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params
from har_jax.sharding import LogicalAxes

ENCODERS: dict[str, Family] = {
    name: family for family in (VISION_FAMILY,) for name in family.model_types
}


def _family_of(directory: Path) -> Family:
    return ENCODERS[hf_dir.read_config(directory, ENCODERS)["model_type"]]


def read_encoder(directory: Path) -> EncoderConfig:
    """The configuration of a directory's encoder; no weights are read."""
    return _family_of(directory).read_config(directory)[0]


def load_encoder(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    logical_axes: Mapping[str, LogicalAxes],
    config: EncoderConfig,
    directory: Path,
    **placement: Any,
) -> Params:
    """The parameters of a tower without its projection, straight into their shards."""
    family = _family_of(directory)
    return family.load_params(shapes, logical_axes, (config, None), directory, **placement)
