"""Mistral (v0.1) from and to Hugging Face directories."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import Keys, listed, shortened
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.table import Row, linear, norm
from har_jax.models.decoders.transformer import TransformerConfig
from har_jax.models.sizes import Base, Width

_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072}
"""What a config.json means that lacks a key, where that is not Mistral-7B's value."""


_TYPES = typing.get_type_hints(TransformerConfig, include_extras=True)

KEYS = Keys(
    used={
        **_TYPES,
        "head_dim": Width | None,
        "num_key_value_heads": Width | None,
        "rope_scaling": dict[str, Any] | None,
        "rope_parameters": dict[str, Any] | None,
        "layer_types": list[str] | None,
    },
    fixed={**FIXED, "use_sliding_window": (True,)},
    harmless=HARMLESS,
    why=WHY,
)
ROPE = Keys(
    used={"rope_theta": Base},
    fixed={"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1, 1.0)},
)


def read(config: Mapping[str, Any], where: str = "mistral config") -> TransformerConfig:
    """From a `config.json` of transformers 4 or 5.

    Raises:
      UserError: another family, a number out of its range, or a key that changes, or may change,
        what is computed: scaled positions, quantized weights, biases.
    """
    model_type = config.get("model_type")
    if model_type != "mistral":
        raise UserError(
            f"{where} is of type {shortened(repr(model_type))} where a 'mistral' one is needed"
        )
    values = {**_DEFAULTS, **KEYS.read(config, where)}
    for key in ("rope_parameters", "rope_scaling"):  # the second is the older name, and wins
        values |= ROPE.read(values.pop(key, None) or {}, f"{where}: {key}")
    heads = values.get("num_attention_heads", TransformerConfig.num_attention_heads)
    if values.get("head_dim") is None:
        values["head_dim"] = values.get("hidden_size", TransformerConfig.hidden_size) // heads
    if values.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = heads
    types = set(values.pop("layer_types", None) or ())
    config_read = TransformerConfig(**values)
    full = config_read.sliding_window is None
    if types - {"full_attention" if full else "sliding_attention"}:
        raise UserError(
            f"{where}: layer_types has {listed(sorted(types))}, but with sliding_window="
            f"{config_read.sliding_window} all layers are alike here; give a model whose layers are"
        )
    return config_read


def write(config: TransformerConfig) -> dict[str, Any]:
    """The contents of a `config.json` that transformers loads."""
    values = dataclasses.asdict(config)
    return {
        "architectures": ["MistralForCausalLM"],
        **values,
        "rope_parameters": {"rope_type": "default", "rope_theta": values["rope_theta"]},
    }


def table() -> list[Row]:
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
    table(),
    ignore,
    {"model.": ("",)},  # `MistralModel`'s, without an output layer
)

load_mistral, save_mistral = MISTRAL.load, MISTRAL.save_module
