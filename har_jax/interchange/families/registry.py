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
from har_jax.interchange.families.gpt2 import GPT2_DECODER
from har_jax.interchange.families.llama import LLAMA
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.interchange.families.qwen2 import QWEN2
from har_jax.interchange.families.qwen3 import QWEN3
from har_jax.interchange.families.smollm3 import SMOLLM3
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params
from har_jax.sharding import LogicalAxes

_DECODERS = (MISTRAL, LLAMA, SMOLLM3, QWEN2, QWEN3, GPT2_DECODER)
DECODERS: dict[str, Family] = {name: family for family in _DECODERS for name in family.model_types}
ENCODERS: dict[str, Family] = {
    name: family for family in (VISION_FAMILY,) for name in family.model_types
}

_OWN_EYES = "it has an encoder of its own: give the language model alone"
_EXPERTS = "its perceptrons are mixtures of experts"
_AROUND = "its norms stand elsewhere in a layer"
_BESIDE = "attention and perceptron read the same input"
OTHER_DECODERS = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "it scales its embeddings, and "
                    "its norms multiply by 1 + weight"),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss",
                     "granitemoe", "phimoe", "llama4_text"), _EXPERTS),
    **dict.fromkeys(("llava", "mllama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm",
                     "llama4", "mistral3", "paligemma"), _OWN_EYES),
    **dict.fromkeys(("phi", "gpt_neox", "gptj", "falcon", "cohere", "cohere2"), _BESIDE),
    **dict.fromkeys(("olmo2", "olmo3", "glm4"), _AROUND),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "rwkv", "recurrent_gemma"), "it has layers that "
                    "are no attention"),
    "phi3": "one kernel makes gate and up, and its positions are of another kind",
    "glm": "its rotary positions turn pairs of neighbours",
    "opt": "its positions begin at 2, and its norms may stand elsewhere",
    "bloom": "it has no positions but biases of attention",
    "mpt": "it has no positions but biases of attention",
    "t5": "it is an encoder and a decoder",
    "bart": "it is an encoder and a decoder",
    "bert": "it is an encoder of texts",
    "granite": "it scales embeddings, attention and logits",
    "ministral": "some of its layers have windows and some have none",
}  # fmt: skip
"""Types of models that people have, and what in them is another computation than ours."""


def family_of(config: DecoderConfig) -> Family:
    """The family that a decoder's configuration was read by."""
    return DECODERS[config.model_type]


def read_decoder(directory: Path) -> DecoderConfig:
    """The configuration of a directory's decoder; no weights are read."""
    model_type = hf_dir.read_config(directory, DECODERS, OTHER_DECODERS)["model_type"]
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
