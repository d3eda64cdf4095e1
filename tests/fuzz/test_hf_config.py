"""`config.json` of every family: each drawn one is read as what it says, or refused in a line."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import random
from typing import Any

from har_jax.interchange import llava
from har_jax.interchange.families.clip import CLIP_FAMILY, VISION_FAMILY
from har_jax.interchange.families.dinov2 import DINOV2_FAMILY
from har_jax.interchange.families.gpt2 import GPT2_FAMILY
from har_jax.interchange.families.registry import read_decoder, read_encoder
from har_jax.interchange.families.siglip_towers import SIGLIP_FAMILY
from har_jax.models.captioner import CaptionerConfig
from har_jax.models.decoders import MistralConfig
from har_jax.models.decoders.gpt2 import GPT2Config
from har_jax.models.encoders.clip import CLIPConfig, VisionConfig
from har_jax.models.encoders.dinov2 import Dinov2Config
from har_jax.models.encoders.siglip_text import SiglipConfig
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

LLAVA = CaptionerConfig(vision=VisionConfig(), lm=MistralConfig())
CLIP = CLIP_FAMILY.write(CLIPConfig())
WHOLE: list[tuple[Any, dict[str, Any]]] = [
    (read_decoder, dataclasses.asdict(MistralConfig())),
    (GPT2_FAMILY.read_config, GPT2_FAMILY.write(GPT2Config())),
    (CLIP_FAMILY.read_config, CLIP),
    (read_encoder, CLIP["vision_config"]),
    (VISION_FAMILY.read_config, CLIP),
    (SIGLIP_FAMILY.read_config, SIGLIP_FAMILY.write(SiglipConfig())),
    (read_encoder, SIGLIP_FAMILY.write(SiglipConfig())["vision_config"]),
    (read_encoder, DINOV2_FAMILY.write(Dinov2Config(num_register_tokens=4))),
    (read_encoder, DINOV2_FAMILY.write(Dinov2Config(use_swiglu_ffn=True))),
    (llava.read_llava_config, llava.config_to_hf(LLAVA, 32_000)),
]
MORE = [
    "rope_scaling", "rope_parameters", "rope_theta", "quantization_config", "layer_types",
    "sliding_window", "attention_bias", "head_dim", "partial_rotary_factor", "auto_map",
    "torch_dtype", "is_decoder", "text_config_dict", "vision_config_dict", "vision_feature_layer",
    "eos_token_id", "hidden_act", "max_length", "pruned_heads", "num_key_value_heads", "n_inner",
    "mlp_ratio", "image_size", "num_register_tokens", "projection_size", "patch_size",
]  # fmt: skip


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    read, config = rng.choice(WHOLE)
    config = copy.deepcopy(config)
    for _ in range(rng.choice([0, 0, 1, 3])):
        nested = [config, *(v for v in config.values() if isinstance(v, dict))]
        rng.choice(nested)[rng.choice(MORE)] = hostile.value(rng)
    if rng.random() < 0.5:  # one number out of its range
        nested = [config, *(v for v in config.values() if isinstance(v, dict))]
        part = rng.choice(nested)
        numbers = [key for key, value in part.items() if isinstance(value, int | float)]
        if numbers:
            part[rng.choice(numbers)] = hostile.number(rng)
        data = json.dumps(config).encode()
    else:
        data = hostile.json_bytes(rng, config)
    (folder / "config.json").write_bytes(data)
    return Case(lambda: read(folder))


def test_configs(tmp_path, record_property):
    attempt("HF config.json", 2500, draw, tmp_path, record_property)
