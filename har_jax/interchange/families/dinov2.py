"""DINOv2, with or without registers, from and to Hugging Face directories."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import keys_of, read_present
from har_jax.interchange.table import Row, linear, norm, tower_layers
from har_jax.models.encoders.dinov2 import Dinov2Config, Dinov2Tower

_KEYS = keys_of(
    Dinov2Config,
    but=("trained_size",),
    fixed={"qkv_bias": (True,)},
    # How it was born and trained, and what it gives as a part of other networks.
    harmless=(
        "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "stage_names",
        "layerscale_value", "apply_layernorm", "reshape_hidden_states", "out_features",
        "out_indices",
    ),
)  # fmt: skip
_WITH_REGISTERS: dict[str, Any] = {"num_register_tokens": 4, "patch_size": 16}
"""What a config.json with registers means that lacks a key."""


def read(hf: Mapping[str, Any], where: str = "DINOv2 config") -> Dinov2Config:
    """From a `config.json`, as `read_present` does."""
    registers = hf.get("model_type") == "dinov2_with_registers"
    found = read_present(_KEYS, hf, where)
    if not registers:
        found.pop("num_register_tokens", None)
    return Dinov2Config(**((_WITH_REGISTERS if registers else {}) | found))


def write(config: Dinov2Config) -> dict[str, Any]:
    """The contents of a `config.json` that transformers reads."""
    registers = config.num_register_tokens is not None
    ratio = int(config.mlp_ratio) if config.mlp_ratio == int(config.mlp_ratio) else config.mlp_ratio
    left_out = {"image_size", "mlp_ratio", "use_mask_token" if registers else "num_register_tokens"}
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": config.model_type,
        "image_size": config.trained_size,
        "mlp_ratio": ratio,
        **{key: getattr(config, key) for key in _KEYS.used if key not in left_out},
    }


def table() -> list[Row]:
    embeddings, layer, path = "embeddings.", "encoder.layer.{}", "layers.{}"
    patch = {"axes": "d c p q -> p q c d", "bias": "d -> d"}
    names = {
        "attn_norm": "norm1",
        "attn.q": "attention.attention.query",
        "attn.k": "attention.attention.key",
        "attn.v": "attention.attention.value",
        "attn.o": "attention.output.dense",
        "mlp_norm": "norm2",
    }
    return [
        Row(f"{embeddings}cls_token", "class_embedding", "() () d -> d"),
        Row(f"{embeddings}mask_token", "mask_embedding", "() d -> d"),
        Row(f"{embeddings}register_tokens", "registers", "() r d -> r d"),
        Row(f"{embeddings}position_embeddings", "position_embedding", "() s d -> s d"),
        *linear(f"{embeddings}patch_embeddings.projection", "patch_embedding", **patch),
        *tower_layers(layer, path, names),
        Row(f"{layer}.layer_scale1.lambda1", f"{path}.attn_scale", "d -> d"),
        Row(f"{layer}.layer_scale2.lambda1", f"{path}.mlp_scale", "d -> d"),
        Row(f"{layer}.mlp.weights_in.weight", f"{path}.mlp.gate_up.kernel", "(c f) d -> d c f"),
        Row(f"{layer}.mlp.weights_in.bias", f"{path}.mlp.gate_up.bias", "(c f) -> c f"),
        *linear(f"{layer}.mlp.weights_out", f"{path}.mlp.out", bias="f -> f"),
        *norm("layernorm", "norm", bias=True),
    ]


DINOV2_FAMILY: Family[Dinov2Config] = Family(
    ("dinov2", "dinov2_with_registers"),
    read,
    write,
    functools.partial(Dinov2Tower, whole=True),
    table(),
    # What was masked in training, and the heads of classifiers.
    lambda config: r"(.*\.)?embeddings\.mask_token|classifier\..*",
    {
        begun: (f"dinov2.{begun}", f"dinov2_with_registers.{begun}")
        for begun in ("embeddings.", "encoder.", "layernorm.")
    },
)
