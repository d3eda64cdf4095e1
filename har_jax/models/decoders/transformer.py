"""A transformer as a captioner's decoder: one prefix, R suffixes of it.

The usual decoder attends over one sequence. Here a batch holds B prefixes of P tokens, and R
captions of T tokens for each; the keys and values of a prefix are computed once (`prefill`) and
shared by its captions, whether these are known (`extend`, teacher forcing) or being written
(`step`, one token).

Architecture as in Jiang et al. 2023 (arXiv 2310.06825) and Hugging Face's `MistralForCausalLM`:
pre-norm blocks, grouped-query attention, rotary positions (half-split layout), SwiGLU, optional
sliding window.

`scan_layers` concerns only how the parameters lie (`models/layouts.py` converts; files never show
it): the layers' parameters are stacked and run by `lax.scan`, so that XLA compiles one layer and
not L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache, attend, attend_alone, heads_first, rotary
from har_jax.models.functional import Params, split, stack, unstack
from har_jax.models.layers import (
    ACTIVATIONS,
    Embedding,
    Linear,
    RMSNorm,
    check_sizes,
    logits,
    output_layer,
)
from har_jax.models.sizes import Base, Epsilon, Layers, Rows, TokenId, Width
from har_jax.sharding import constrain
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Hyper-parameters under Hugging Face's names (`config.json`); the defaults are
    Mistral-7B's."""

    model_type: str = "mistral"
    vocab_size: Rows = 32_000
    hidden_size: Width = 4096
    intermediate_size: Width = 14_336
    num_hidden_layers: Layers = 32
    num_attention_heads: Width = 32
    num_key_value_heads: Width = 8
    head_dim: Width = 128
    hidden_act: str = "silu"
    max_position_embeddings: Rows = 32_768
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Base = 10_000.0
    sliding_window: Rows | None = 4096
    tie_word_embeddings: bool = False
    bos_token_id: TokenId | None = 1
    eos_token_id: TokenId | tuple[TokenId, ...] | None = 2

    def __post_init__(self) -> None:
        heads = ("num_attention_heads", "num_key_value_heads")
        check_sizes(self.model_type, self, *heads, "hidden_act")
        if self.head_dim % 2:
            raise UserError(
                f"{self.model_type} config: head_dim {self.head_dim} is odd, where positions turn "
                "pairs of numbers; correct the config.json"
            )

    def build(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any
    ) -> Transformer:
        """See `protocol.DecoderConfig`."""
        return Transformer(self, rngs=rngs, dtype=dtype, **options)


class Attention(nnx.Module):
    """Grouped-query attention."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        attention: str = "blocks",
    ):
        """`attention` is `config.CaptionerSettings`'."""
        d, h = config.hidden_size, config.head_dim
        n, k = config.num_attention_heads, config.num_key_value_heads
        kw: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.q = Linear((d,), (n, h), ("embed", "heads", "head_dim"), **kw)
        self.k = Linear((d,), (k, h), ("embed", "kv_heads", "head_dim"), **kw)
        self.v = Linear((d,), (k, h), ("embed", "kv_heads", "head_dim"), **kw)
        self.o = Linear((n, h), (d,), ("heads", "head_dim", "embed"), **kw)
        self.theta, self.window = config.rope_theta, config.sliding_window
        self.kernel = attention

    def __call__(
        self,
        x_brtd: Float[Array, "B R T D"],
        positions_t: Int[Array, " T"],
        shared: KV | None,
        written: KV | None,
    ) -> tuple[Float[Array, "B R T D"], KV]:
        q = rotary(self.q(x_brtd), positions_t, self.theta)
        k_brtkh = rotary(self.k(x_brtd), positions_t, self.theta)
        v_brtkh = self.v(x_brtd)
        own = KV(heads_first(k_brtkh), heads_first(v_brtkh))
        if shared is None and written is None and self.kernel != "blocks":
            alone = (q[:, 0], k_brtkh[:, 0], v_brtkh[:, 0])
            seen = attend_alone(*alone, causal=True, window=self.window)
            return self.o(seen[:, None]), own
        if written is not None:  # one token: write it into its slot of the caption's cache
            own = written.with_slot(own, positions_t[0] - (0 if shared is None else shared.length))
        return self.o(attend(q, positions_t, shared, own, self.window)), own


class MLP(nnx.Module):
    """SwiGLU: `down(act(gate(x)) * up(x))`."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = Linear((d,), (f,), ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.up = Linear((d,), (f,), ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = Linear((f,), (d,), ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.activation = config.hidden_act

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm layer: attention, then the perceptron, each added to what it read."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        attention: str = "blocks",
    ):
        d, eps = config.hidden_size, config.rms_norm_eps
        self.attn_norm = RMSNorm(d, eps, rngs=rngs, dtype=dtype)
        self.attn = Attention(config, rngs=rngs, dtype=dtype, attention=attention)
        self.mlp_norm = RMSNorm(d, eps, rngs=rngs, dtype=dtype)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x_brtd: Float[Array, "B R T D"],
        positions_t: Int[Array, " T"],
        shared: KV | None,
        written: KV | None,
    ) -> tuple[Float[Array, "B R T D"], KV]:
        attended, own = self.attn(self.attn_norm(x_brtd), positions_t, shared, written)
        x_brtd = constrain(x_brtd + attended, "batch")
        x_brtd = constrain(x_brtd + self.mlp(self.mlp_norm(x_brtd)), "batch")
        return x_brtd, own


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a backward pass keeps of a block: everything, only its input, or its matrix products."""


Adapt = Callable[[Block, nnx.Rngs], Any]
"""Changes a block that was just built, such as `lora.attach`."""


class Transformer(nnx.Module):
    """The decoder. `dtype` is that of the parameters; activations follow what `embed` is given."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        scan_layers: bool = False,
        attention: str = "blocks",
        adapt: Adapt | None = None,
    ):
        """`adapt` is called with every block, in either layout, before it is stacked."""
        self.config = config
        self.remat = remat
        d, v, n_layers = config.hidden_size, config.vocab_size, config.num_hidden_layers

        def block(rngs: nnx.Rngs) -> Block:
            built = Block(config, rngs=rngs, dtype=dtype, attention=attention)
            if adapt is not None:
                adapt(built, rngs)
            return built

        self.embed_tokens = Embedding(v, d, rngs=rngs, dtype=dtype)
        self.layers: nnx.List[Block] | Block = (
            stack(lambda key: block(nnx.Rngs(key)), n_layers, rngs.params())
            if scan_layers
            else nnx.List([block(rngs) for _ in range(n_layers)])
        )
        self.norm = RMSNorm(d, config.rms_norm_eps, rngs=rngs, dtype=dtype)
        self.lm_head = output_layer(config.tie_word_embeddings, d, v, rngs, dtype)

    def embed(
        self, tokens: Int[AnyArray, "*batch"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*batch D"]:
        return self.embed_tokens(tokens, dtype)

    def prefill(self, x_bpd: Float[Array, "B P D"]) -> tuple[Float[Array, "B P D"], KVCache]:
        """A whole sequence at positions 0..P-1, causally: final hidden states and keys/values."""
        hidden, own = self._run(x_bpd[:, None], jnp.arange(x_bpd.shape[1]), None, None)
        return hidden[:, 0], tuple(KV(k[:, 0], v[:, 0]) for k, v in own)

    def extend(self, x_brtd: Float[Array, "B R T D"], prefix: KVCache) -> Float[Array, "B R T D"]:
        """R known captions after each prefix, at positions P..P+T-1: final hidden states."""
        start = prefix[0].length
        hidden, _ = self._run(x_brtd, start + jnp.arange(x_brtd.shape[2]), prefix, None)
        return hidden

    def step(
        self, x_brd: Float[Array, "B R D"], prefix: KVCache, written: KVCache, t: Int[Array, ""]
    ) -> tuple[Float[Array, "B R D"], KVCache]:
        """The t-th token of each caption (from 0): its hidden state, and the cache with it."""
        start = prefix[0].length
        hidden, written = self._run(x_brd[:, :, None], (start + t)[None], prefix, written)
        return hidden[:, :, 0], written

    def empty_cache(self, b: int, r: int, t: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """Room for the keys and values of T tokens of `[B,R]` captions."""
        shape = (b, r, self.config.num_key_value_heads, t, self.config.head_dim)

        def zeros() -> Array:
            return constrain(jnp.zeros(shape, dtype), "batch", None, "heads")

        return tuple(KV(zeros(), zeros()) for _ in range(self.config.num_hidden_layers))

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32."""
        return logits(hidden, self.embed_tokens, self.lm_head)

    def for_decoding(self) -> Transformer:
        """This decoder with its layers apart, as a loop of `step`s is to read them.

        Call it once, outside the loop: slicing stacked parameters copies them.
        """
        if not isinstance(self.layers, Block):
            return self
        apart = nnx.merge(*nnx.split(self))
        apart.layers = nnx.List(unstack(self.layers))
        return apart

    def _run(
        self, x_brtd: Array, positions_t: Array, shared: KVCache | None, written: KVCache | None
    ) -> tuple[Array, KVCache]:
        x_brtd = constrain(x_brtd, "batch")
        if isinstance(self.layers, Block) and written is None:
            x_brtd, own = self._scan(self.layers, x_brtd, positions_t, shared)
            return self.norm(x_brtd), own
        layers = unstack(self.layers) if isinstance(self.layers, Block) else self.layers
        own = []
        for i, layer in enumerate(layers):
            if self.remat != "none":
                layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat])
            caches = (None if cache is None else cache[i] for cache in (shared, written))
            x_brtd, kv = layer(x_brtd, positions_t, *caches)
            own.append(kv)
        return self.norm(x_brtd), tuple(own)

    def _scan(
        self, layers: Block, x_brtd: Array, positions_t: Array, shared: KVCache | None
    ) -> tuple[Array, KVCache]:
        """The layers one after the other in a `lax.scan` over their stacked parameters."""
        structure, params = split(layers)
        one = structure.unstacked()

        def layer(x_brtd: Array, own: tuple[Params, KV | None]) -> tuple[Array, KV]:
            params, shared = own
            return one.merge(params)(x_brtd, positions_t, shared, None)

        if self.remat != "none":
            # A scan's body is compiled alone: nothing outside could be merged with what it repeats.
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        prefixes = None if shared is None else jax.tree.map(lambda *x: jnp.stack(x), *shared)
        x_brtd, kv = jax.lax.scan(layer, x_brtd, (params, prefixes))
        return x_brtd, tuple(KV(k, v) for k, v in zip(kv.k, kv.v, strict=True))
