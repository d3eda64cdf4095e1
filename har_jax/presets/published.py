"""The shapes of the published models that presets name, so that what needs shapes alone can be
had before a download."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from har_jax.config import Config

_TOWER = {"patch_size": 14, "hidden_act": "quick_gelu", "num_channels": 3}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}

CONFIGS: dict[str, dict[str, Any]] = {
    "Mistral-7B-v0.1": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "SmolLM2-360M": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49_152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": 151_643,
    },
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    "siglip2-base-patch16-224": {
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
            "image_size": 224,
        },
        "text_config": {"model_type": "siglip_text_model", "vocab_size": 256_000},
    },
    "clip-vit-base-patch32": {
        "model_type": "clip",
        "projection_dim": 512,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 32,
            "image_size": 224,
            "hidden_act": "quick_gelu",
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "vocab_size": 49_408,
            "max_position_embeddings": 77,
        },
    },
    "clip-vit-large-patch14": {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {
            **_TOWER,
            **_LARGE,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "image_size": 224,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 49_408,
            "max_position_embeddings": 77,
        },
    },
}
"""By the last part of a directory's or a hub's name."""


def described(config: Config, folder: Path) -> Config:
    """The configuration with each model that is not there, but known, as a directory in `folder`
    that holds its `config.json` and nothing else."""
    names = {"encoder": config.model.encoder, "lm": config.model.lm}
    for part, name in names.items():
        known = CONFIGS.get(Path(name).name.partition("@")[0])
        if known is None or Path(name).exists():
            continue
        directory = folder / part
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(known))
        names[part] = str(directory)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **names))
