"""The decoders that a captioner can be built on, by the `model_type` of their `config.json`."""

from __future__ import annotations

from pathlib import Path

from har_jax.interchange import hf_dir
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.models.decoders.protocol import DecoderConfig

DECODERS: dict[str, Family] = {name: family for family in (MISTRAL,) for name in family.model_types}


def family_of(config: DecoderConfig) -> Family:
    """The family that a configuration was read by."""
    return DECODERS[config.model_type]


def read_decoder(directory: Path) -> DecoderConfig:
    """The configuration of a directory's decoder; no weights are read."""
    config = hf_dir.read_config(directory, DECODERS)
    return DECODERS[config["model_type"]].read(config)
