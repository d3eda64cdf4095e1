"""Mistral (v0.1) from and to Hugging Face directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.interchange.families.family import Family
from har_jax.interchange.table import Row, linear, norm
from har_jax.models.decoders.transformer import TransformerConfig

_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072}
"""What a config.json means that lacks a key, where that is not Mistral-7B's value."""


def read(config: Mapping[str, Any]) -> TransformerConfig:
    """From a `config.json` (transformers 4 and 5 write rope_theta differently).

    Raises:
      UserError: another family, or positions that are scaled.
    """
    model_type = config.get("model_type")
    if model_type != "mistral":
        raise UserError(f"this is a {model_type!r} config where a 'mistral' one is needed")
    known = {f.name for f in dataclasses.fields(TransformerConfig)}
    values = {**_DEFAULTS, **{k: v for k, v in config.items() if k in known}}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"mistral config: rope_type {rope['rope_type']!r} is not supported; only 'default'"
        )
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    heads = values.get("num_attention_heads", TransformerConfig.num_attention_heads)
    if values.get("head_dim") is None:
        values["head_dim"] = values.get("hidden_size", TransformerConfig.hidden_size) // heads
    if values.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = heads
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = tuple(values["eos_token_id"])
    return TransformerConfig(**values)


def write(config: TransformerConfig) -> dict[str, Any]:
    """The contents of a `config.json` that transformers loads."""
    values = dataclasses.asdict(config)
    return {
        "architectures": ["MistralForCausalLM"],
        **values,
        "rope_parameters": {"rope_type": "default", "rope_theta": values["rope_theta"]},
    }


def table(bare: bool = False) -> list[Row]:
    del bare  # all files have the same names
    hf, path = "model.layers.{}", "layers.{}"
    heads = "(n h) d -> d n h"
    return [
        Row("model.embed_tokens.weight", "embed_tokens.embedding", "v d -> v d"),
        *norm(f"{hf}.input_layernorm", f"{path}.attn_norm"),
        *linear(f"{hf}.self_attn.q_proj", f"{path}.attn.q", axes=heads),
        *linear(f"{hf}.self_attn.k_proj", f"{path}.attn.k", axes=heads),
        *linear(f"{hf}.self_attn.v_proj", f"{path}.attn.v", axes=heads),
        *linear(f"{hf}.self_attn.o_proj", f"{path}.attn.o", axes="d (n h) -> n h d"),
        *norm(f"{hf}.post_attention_layernorm", f"{path}.mlp_norm"),
        *linear(f"{hf}.mlp.gate_proj", f"{path}.mlp.gate"),
        *linear(f"{hf}.mlp.up_proj", f"{path}.mlp.up"),
        *linear(f"{hf}.mlp.down_proj", f"{path}.mlp.down"),
        *norm("model.norm", "norm"),
        *linear("lm_head", "lm_head"),
    ]


def ignore(config: TransformerConfig) -> str:
    """Buffers that old files carry, and embeddings repeated as an output layer."""
    return r".*rotary_emb\.inv_freq" + (r"|lm_head\.weight" * config.tie_word_embeddings)


MISTRAL: Family[TransformerConfig] = Family(
    ("mistral",),
    read,
    write,
    lambda config, rngs, dtype, **options: config.build(rngs=rngs, dtype=dtype, **options),
    table,
    ignore,
)

load_mistral, save_mistral = MISTRAL.load, MISTRAL.save_module
