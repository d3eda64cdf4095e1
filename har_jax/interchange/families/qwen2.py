"""Qwen2 and Qwen2.5 from and to Hugging Face directories: Llama's with biases at q, k and v."""

from __future__ import annotations

from typing import Any

from har_jax.interchange.families.causal_lm import (
    LAYER_TYPES,
    Found,
    causal_lm,
    sliding,
    spelt_sliding,
)

DEFAULTS: dict[str, Any] = dict(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=22_016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    bos_token_id=None,
    eos_token_id=None,
    sliding_window=4096,
    use_sliding_window=False,
    max_window_layers=28,
)


def _options(found: Found, where: str) -> dict[str, Any]:
    return {"qkv_bias": True, **sliding(found, where)}


QWEN2 = causal_lm(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults=DEFAULTS,
    used=LAYER_TYPES,
    options=_options,
    spelt=spelt_sliding,
)
