"""Llama (2, 3, 3.1 to 3.3, and what is laid out alike: TinyLlama, SmolLM2) from and to Hugging Face
directories."""

from __future__ import annotations

from typing import Any

from har_jax.interchange.families.causal_lm import Found, causal_lm
from har_jax.models.decoders.transformer import TransformerConfig

BIASES: dict[str, Any] = {"attention_bias": bool | None, "mlp_bias": bool | None}


def biases(found: Found, where: str) -> dict[str, Any]:
    """One key says it of all four linears of attention, another of the three of the perceptron."""
    attn, mlp = bool(found.get("attention_bias")), bool(found.get("mlp_bias"))
    return {"qkv_bias": attn, "out_bias": attn, "mlp_bias": mlp}


def _options(found: Found, where: str) -> dict[str, Any]:
    return {"sliding_window": None, **biases(found, where)}


def spelt_biases(config: TransformerConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


LLAMA = causal_lm(
    "llama",
    "LlamaForCausalLM",
    defaults=dict(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    ),
    used=BIASES,
    options=_options,
    spelt=spelt_biases,
)
