"""GPT-2 from and to Hugging Face directories.

GPT-2's linears are `Conv1D`s: their kernels are stored `[in, out]`, as ours are.
"""

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
from har_jax.models.decoders.gpt2 import GPT2, GPT2Config
from har_jax.sharding import Rules


def gpt2_table(hf: str = "transformer.") -> list[Row]:
    """`hf` is what precedes the names in the file: nothing in the files of OpenAI's models."""
    block, path = f"{hf}h.{{}}", "layers.{}"
    qkv = {"axes": "d (c n h) -> d c n h", "bias": "(c n h) -> c n h"}
    return [
        Row(f"{hf}wte.weight", "token_embedding.embedding", "v d -> v d"),
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


def load_gpt2(
    directory: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
    allow_nan: bool = False,
) -> GPT2:
    """A GPT-2, its parameters in `dtype` (None: as stored) and sharded over `mesh`.

    Takes the files of `GPT2LMHeadModel` and of `GPT2Model`, whose names lack the first part.
    """
    path = hf_dir.resolve(directory)
    config = GPT2Config.from_hf(hf_dir.read_config(path, ["gpt2"]))
    bare = "wte.weight" in hf_dir.open_weights(path)[0]
    ignore = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"  # causal masks, in old files
    if config.tie_word_embeddings:
        ignore += r"|lm_head\.weight"  # some files repeat the embeddings under this name
    return load(
        lambda: GPT2(config, rngs=nnx.Rngs(0)),
        path,
        gpt2_table("" if bare else "transformer."),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        ignore=ignore,
        allow_nan=allow_nan,
    )


def save_gpt2(model: GPT2, directory: str | os.PathLike[str]) -> None:
    """Writes a directory that `transformers.GPT2LMHeadModel.from_pretrained` loads."""
    save(model, Path(directory), gpt2_table(), model.config.to_hf())
