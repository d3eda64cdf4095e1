"""GPT-2 from and to Hugging Face directories, as a captioner's decoder and as ZeroCap's language
model; both have the same names.

GPT-2's linears are `Conv1D`s: their kernels are stored `[in, out]`, as ours are.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import Keys, shortened
from har_jax.interchange.families.causal_lm import family
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.table import Row, linear, norm
from har_jax.models.decoders.gpt2 import GPT2, GPT2Config
from har_jax.models.decoders.transformer import TransformerConfig

_SUMMARIES = frozenset(
    ["summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"]
)
"""Of heads that classify texts."""

KEYS = Keys(
    used=typing.get_type_hints(GPT2Config, include_extras=True),
    fixed=FIXED,
    # The order of casts, and the older name of `n_positions`.
    harmless=HARMLESS | _SUMMARIES | {"reorder_and_upcast_attn", "n_ctx"},
    why=WHY,
)


def read(config: Mapping[str, Any], where: str = "GPT-2 config") -> GPT2Config:
    """From a `config.json`.

    Raises:
      UserError: another family, cross-attention, sizes that do not fit each other, or a key that
        changes, or may change, what is computed.
    """
    model_type = config.get("model_type")
    if model_type != "gpt2":
        raise UserError(
            f"{where} is of type {shortened(repr(model_type))} where a 'gpt2' one is needed"
        )
    return GPT2Config(**KEYS.read(config, where))


def gpt2_table() -> list[Row]:
    hf = "transformer."
    block, path = f"{hf}h.{{}}", "layers.{}"
    qkv = {"axes": "d (c n h) -> d c n h", "bias": "(c n h) -> c n h"}
    return [
        Row(f"{hf}wte.weight", "embed_tokens.embedding", "v d -> v d"),
        Row(f"{hf}wpe.weight", "position_embedding", "t d -> t d"),
        *norm(f"{block}.ln_1", f"{path}.attn_norm", bias=True),
        *linear(f"{block}.attn.c_attn", f"{path}.attn.qkv", **qkv),
        *linear(f"{block}.attn.c_proj", f"{path}.attn.o", axes="(n h) d -> n h d", bias="d -> d"),
        *norm(f"{block}.ln_2", f"{path}.mlp_norm", bias=True),
        *linear(f"{block}.mlp.c_fc", f"{path}.mlp.up", axes="d f -> d f", bias="f -> f"),
        *linear(f"{block}.mlp.c_proj", f"{path}.mlp.down", axes="f d -> f d", bias="d -> d"),
        *norm(f"{hf}ln_f", "norm", bias=True),
        *linear("lm_head", "lm_head"),  # where untied, a Linear: [out, in]
    ]


_MASKS = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
"""Causal masks in old files."""


def ignore(config: GPT2Config) -> str:
    """Causal masks, and embeddings repeated as an output layer."""
    return _MASKS + (r"|lm_head\.weight" * config.tie_word_embeddings)


# Takes the files of `GPT2LMHeadModel` and of `GPT2Model`, whose names lack the first part.
GPT2_FAMILY: Family[GPT2Config] = Family(
    ("gpt2",),
    read,
    GPT2Config.to_hf,
    GPT2,
    gpt2_table(),
    ignore,
    {"transformer.": ("",)},
)

load_gpt2, save_gpt2 = GPT2_FAMILY.load, GPT2_FAMILY.save_module


def read_decoder(config: Mapping[str, Any], where: str = "GPT-2 config") -> TransformerConfig:
    """`read`, as options of the transformer.

    Raises:
      UserError: as `read`; or scores that are scaled in another way than by the root of a head's
        width.
    """
    found = read(config, where)
    if not found.scale_attn_weights or found.scale_attn_by_inverse_layer_idx:
        raise UserError(
            f"{where}: scale_attn_weights={found.scale_attn_weights} and "
            f"scale_attn_by_inverse_layer_idx={found.scale_attn_by_inverse_layer_idx} are not "
            "supported in a captioner's decoder (only True and False); give another GPT-2"
        )
    same = {ours: getattr(found, theirs) for theirs, ours in _NAMES.items()}
    return TransformerConfig(
        model_type="gpt2",
        num_key_value_heads=found.n_head,
        head_dim=found.head_dim,
        intermediate_size=found.inner,
        sliding_window=None,
        norm="layer",
        positions="learned",
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "fused_qkv"), True),
        gated=False,
        **same,
    )


_NAMES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}


def write_decoder(config: TransformerConfig) -> dict[str, Any]:
    """The way back, as transformers reads it."""
    same = {theirs: getattr(config, ours) for theirs, ours in _NAMES.items()}
    inner = config.intermediate_size
    return GPT2Config(n_inner=None if inner == 4 * config.hidden_size else inner, **same).to_hf()


GPT2_DECODER = family("gpt2", read_decoder, write_decoder, gpt2_table(), GPT2_FAMILY.places, _MASKS)
