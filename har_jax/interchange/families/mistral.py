"""Mistral from and to Hugging Face directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from har_jax.interchange import hf_dir
from har_jax.interchange.table import Row, linear, norm
from har_jax.interchange.weights import load, save
from har_jax.models.decoders.mistral import Mistral, MistralConfig
from har_jax.sharding import Rules


def mistral_table() -> list[Row]:
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


def load_mistral(
    directory: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
    allow_nan: bool = False,
    **options: Any,
) -> Mistral:
    """A Mistral, its parameters in `dtype` (None: as stored) and sharded over `mesh`.

    `options` go to the model (such as `remat`); they change how it computes, never its weights.
    """
    path = hf_dir.resolve(directory)
    config = MistralConfig.from_hf(hf_dir.read_config(path, ["mistral"]))
    ignore = r".*rotary_emb\.inv_freq"  # a buffer that old files carry
    if config.tie_word_embeddings:
        ignore += r"|lm_head\.weight"  # some files repeat the embeddings under this name
    return load(
        lambda: Mistral(config, rngs=nnx.Rngs(0), **options),
        path,
        mistral_table(),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        ignore=ignore,
        allow_nan=allow_nan,
    )


def save_mistral(model: Mistral, directory: str | os.PathLike[str]) -> None:
    """Writes a directory that `transformers.MistralForCausalLM.from_pretrained` loads."""
    save(model, Path(directory), mistral_table(), model.config.to_hf())
