"""Qwen3 from and to Hugging Face directories: heads of q and k are normalised."""

from __future__ import annotations

from typing import Any

from har_jax.interchange.families.causal_lm import (
    LAYER_TYPES,
    Found,
    causal_lm,
    sliding,
    spelt_sliding,
)
from har_jax.interchange.families.qwen2 import DEFAULTS
from har_jax.models.decoders.transformer import TransformerConfig


def _options(found: Found, where: str) -> dict[str, Any]:
    bias = bool(found["attention_bias"])
    return {"qk_norm": True, "qkv_bias": bias, "out_bias": bias, **sliding(found, where)}


def _spelt(config: TransformerConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, **spelt_sliding(config)}


QWEN3 = causal_lm(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults={**DEFAULTS, "head_dim": 128},
    used={**LAYER_TYPES, "attention_bias": bool | None},
    options=_options,
    spelt=_spelt,
)
