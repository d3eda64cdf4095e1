"""GPT-2 (Radford et al. 2019), of any size, as a plain language model over `[B,T]`.

    x      = model.embed(tokens)                      # [B,T,D]
    hidden, cache = model.prefill(x, room=20)         # [B,T,D]; keys and values of T + 20 slots
    hidden, cache = model.step(x_next, cache, t)      # [B,D]: one token at position t
    logits = model.logits(hidden)                     # [..., V] float32

`extend` reads several tokens after a full cache. The cache is an argument and a result like any
other, so one may differentiate with respect to it, as ZeroCap (Tewel et al. 2022, arXiv:2111.14447)
does to steer the text.

Architecture as Hugging Face's `GPT2LMHeadModel`: pre-norm blocks, learnt positions, biases
everywhere, an output layer tied to the embeddings. There is no dropout: the model is used frozen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache, heads_first
from har_jax.models.layers import (
    MLP,
    Embedding,
    Initializer,
    LayerNorm,
    Linear,
    check_sizes,
    logits,
    normal,
    output_layer,
    param,
)
from har_jax.models.sizes import Epsilon, Layers, Rows, TokenId, Width
from har_jax.sharding import constrain
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Hyper-parameters under Hugging Face's names (`config.json`); the defaults are GPT-2 small."""

    vocab_size: Rows = 50_257
    n_positions: Rows = 1024
    n_embd: Width = 768
    n_layer: Layers = 12
    n_head: Width = 12
    n_inner: Width | None = None  # None: 4 n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: TokenId | None = 50_256
    eos_token_id: TokenId | None = 50_256

    def __post_init__(self) -> None:
        check_sizes("GPT-2", self, "n_embd", "n_head", "activation_function")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """The width within an MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers loads."""
        family = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        return {**family, **dataclasses.asdict(self)}


def _residual(config: GPT2Config) -> Initializer:
    """Of what is added to the residual stream, twice in each layer."""
    return normal(0.02 * (2 * config.n_layer) ** -0.5)


class Attention(nnx.Module):
    """Causal multi-head attention; one kernel `[D,3,N,H]` makes q, k and v, as in the file."""

    def __init__(self, config: GPT2Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, n, h = config.n_embd, config.n_head, config.head_dim
        kw: dict[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        self.qkv = Linear((d,), (3, n, h), ("embed", None, "heads", "head_dim"), **kw)
        out_axes = ("heads", "head_dim", "embed")
        self.o = Linear((n, h), (d,), out_axes, init=_residual(config), **kw)
        self.scale = h**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        positions_t: Int[Array, " T"],
        past: KV | None,
        write: bool,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Attends to `past` and to itself; with `write`, its keys go into slots of `past`."""
        q_btnh, *own = jnp.moveaxis(self.qkv(x_btd), 2, 0)
        kv = KV(*map(heads_first, own))
        if past is not None and write:
            kv = past.with_slot(kv, positions_t[0])
        elif past is not None:
            kv = KV(*(jnp.concatenate(pair, axis=2) for pair in zip(past, kv, strict=True)))
        scores_bnts = jnp.einsum(
            "btnh,bnsh->bnts", q_btnh, kv.k, preferred_element_type=jnp.float32
        )
        # Slots that are not yet written lie in the future, so this one rule masks them as well.
        seen_ts = positions_t[:, None] >= jnp.arange(kv.length)
        scores_bnts = jnp.where(seen_ts, scores_bnts * self.scale, jnp.finfo(jnp.float32).min)
        weights_bnts = jax.nn.softmax(scores_bnts, axis=-1).astype(x_btd.dtype)
        return self.o(jnp.einsum("bnts,bnsh->btnh", weights_bnts, kv.v)), kv


class Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: GPT2Config, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, eps = config.n_embd, config.layer_norm_epsilon
        self.attn_norm = LayerNorm(d, eps, rngs=rngs, dtype=dtype)
        self.attn = Attention(config, layer, rngs=rngs, dtype=dtype)
        self.mlp_norm = LayerNorm(d, eps, rngs=rngs, dtype=dtype)
        init = (normal(), _residual(config))
        act = config.activation_function
        self.mlp = MLP(d, config.inner, act, init, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_btd: Array, positions_t: Array, past: KV | None, write: bool
    ) -> tuple[Array, KV]:
        attended, kv = self.attn(self.attn_norm(x_btd), positions_t, past, write)
        x_btd = constrain(x_btd + attended, "batch")
        return constrain(x_btd + self.mlp(self.mlp_norm(x_btd)), "batch"), kv


class GPT2(nnx.Module):
    """The language model. `dtype` is that of the parameters; activations follow `embed`'s."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        d, v = config.n_embd, config.vocab_size
        self.embed_tokens = Embedding(v, d, rngs=rngs, dtype=dtype)
        positions = (config.n_positions, d)
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(), dtype)
        layers = [Block(config, i, rngs=rngs, dtype=dtype) for i in range(config.n_layer)]
        self.layers = nnx.List(layers)
        self.norm = LayerNorm(d, config.layer_norm_epsilon, rngs=rngs, dtype=dtype)
        self.lm_head = output_layer(config.tie_word_embeddings, d, v, rngs, dtype)

    def embed(
        self, tokens: Int[AnyArray, "*batch"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*batch D"]:
        """Of the tokens alone; positions are added where they are known, in the verbs below."""
        return self.embed_tokens(tokens, dtype)

    def prefill(
        self, x_btd: Float[Array, "B T D"], room: int = 0
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """A whole sequence at positions 0..T-1: hidden states, and a cache of T + `room` slots.

        Raises:
          UserError: more slots than the model has positions; likewise in `extend`.
        """
        t = x_btd.shape[1]
        self._check_length(t + room)
        hidden, cache = self._run(x_btd, jnp.arange(t), None, False)
        pad = ((0, 0), (0, 0), (0, room), (0, 0))
        return hidden, tuple(KV(jnp.pad(kv.k, pad), jnp.pad(kv.v, pad)) for kv in cache)

    def extend(
        self, x_btd: Float[Array, "B T D"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """T more tokens after a cache whose S slots are all written: hidden states, S + T slots."""
        s, t = cache[0].length, x_btd.shape[1]
        self._check_length(s + t)
        return self._run(x_btd, s + jnp.arange(t), cache, False)

    def step(
        self, x_bd: Float[Array, "B D"], cache: KVCache, t: Int[Array, ""]
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """The token at position t, written into slot t: hidden state, and a cache as large."""
        hidden, cache = self._run(x_bd[:, None], jnp.asarray(t)[None], cache, True)
        return hidden[:, 0], cache

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32."""
        return logits(hidden, self.embed_tokens, self.lm_head)

    def _check_length(self, length: int) -> None:
        if length > self.config.n_positions:
            raise UserError(
                f"{length} tokens, but this GPT-2 has positions for {self.config.n_positions} "
                "(n_positions); give a shorter text or write fewer tokens"
            )

    def _run(
        self, x_btd: Array, positions_t: Array, past: KVCache | None, write: bool
    ) -> tuple[Array, KVCache]:
        cache = []
        places = jnp.take(self.position_embedding[...], positions_t, axis=0)
        x_btd = constrain(x_btd + places.astype(x_btd.dtype), "batch")
        for i, layer in enumerate(self.layers):
            x_btd, kv = layer(x_btd, positions_t, None if past is None else past[i], write)
            cache.append(kv)
        return self.norm(x_btd), tuple(cache)
