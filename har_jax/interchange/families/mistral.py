"""Mistral (v0.1 to v0.3, Nemo) from and to Hugging Face directories."""

from __future__ import annotations

from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import listed
from har_jax.interchange.families.causal_lm import Found, causal_lm
from har_jax.models.decoders.transformer import TransformerConfig
from har_jax.models.sizes import Rows


def _options(found: Found, where: str) -> dict[str, Any]:
    window, types = found["sliding_window"], set(found["layer_types"] or ())
    if types - {"full_attention" if window is None else "sliding_attention"}:
        raise UserError(
            f"{where}: layer_types has {listed(sorted(types))}, but with sliding_window={window} "
            "all layers are alike here; give a model whose layers are"
        )
    return {"sliding_window": window}


def _spelt(config: TransformerConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


MISTRAL = causal_lm(
    "mistral",
    "MistralForCausalLM",
    # Of a config.json that lacks a key: Mistral-7B's but for the two that transformers has others.
    defaults=dict(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-6,
        sliding_window=4096,
    ),
    used={"sliding_window": Rows | None, "layer_types": list[str] | None},
    options=_options,
    spelt=_spelt,
    fixed={"use_sliding_window": (True,)},
)

load_mistral, save_mistral = MISTRAL.load, MISTRAL.save_module
