"""A transformer as a captioner's decoder: one prefix, R suffixes of it.

The usual decoder attends over one sequence. Here a batch holds B prefixes of P tokens, and R
captions of T tokens for each; the keys and values of a prefix are computed once (`prefill`) and
shared by its captions, whether these are known (`extend`, teacher forcing) or being written
(`step`, one token).

Architecture with the defaults as in Jiang et al. 2023 (arXiv 2310.06825) and Hugging Face's
`MistralForCausalLM`: pre-norm blocks, grouped-query attention, rotary positions (half-split
layout), SwiGLU, optional sliding window. Other families are options of it (`options.py`); what
their files say is `interchange/families/`.

`scan_layers` concerns only how the parameters lie (`models/layouts.py` converts; files never show
it): the layers' parameters are stacked and run by `lax.scan`, so that XLA compiles one layer and
not L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache
from har_jax.models.decoders.block import Block, Places, norm
from har_jax.models.decoders.options import LayerKind, Options
from har_jax.models.decoders.rope import angles
from har_jax.models.functional import Params, split, stack, unstack
from har_jax.models.layers import Embedding, logits, normal, output_layer, param, read_from_stack
from har_jax.sharding import constrain
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Options):
    """`options.Options`, of which a decoder is built."""

    def build(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any
    ) -> Transformer:
        """See `protocol.DecoderConfig`."""
        return Transformer(self, rngs=rngs, dtype=dtype, **options)


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
        self.position_embedding: nnx.Param | None = nnx.data(None)
        if (most := config.most_positions) is not None:
            axes = ("position", "embed")
            self.position_embedding = param(rngs, (most, d), axes, normal(), dtype)
        self.layers: nnx.List[Block] | Block = (
            stack(lambda key: block(nnx.Rngs(key)), n_layers, rngs.params())
            if scan_layers
            else nnx.List([block(rngs) for _ in range(n_layers)])
        )
        self.norm = norm(config, rngs=rngs, dtype=dtype)
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

        Call it once, outside the loop: slicing stacked parameters copies them. Quantised kernels
        stay in their stack, out of which each product reads its layer's.
        """
        if not isinstance(self.layers, Block):
            return self
        apart = nnx.merge(*nnx.split(self))
        layers = unstack(self.layers)
        read_from_stack(layers, self.layers)
        apart.layers = nnx.List(layers)
        return apart

    def _run(
        self, x_brtd: Array, positions_t: Array, shared: KVCache | None, written: KVCache | None
    ) -> tuple[Array, KVCache]:
        x_brtd, places = self._placed(x_brtd, positions_t, shared, written)
        kinds = self.config.kinds
        if isinstance(self.layers, Block) and written is None:
            x_brtd, own = self._scan(self.layers, x_brtd, places, kinds, shared)
            return self.norm(x_brtd), own
        layers = unstack(self.layers) if isinstance(self.layers, Block) else self.layers
        own = []
        for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
            run = _as(kind, layer)
            if self.remat != "none":
                run = jax.checkpoint(run, policy=REMAT_POLICIES[self.remat])
            caches = (None if cache is None else cache[i] for cache in (shared, written))
            x_brtd, kv = run(x_brtd, places, *caches)
            own.append(kv)
        return self.norm(x_brtd), tuple(own)

    def _placed(
        self, x_brtd: Array, positions_t: Array, shared: KVCache | None, written: KVCache | None
    ) -> tuple[Array, Places]:
        """The first layer's input, with learned positions added, and where its tokens stand."""
        x_brtd = constrain(x_brtd, "batch")
        if self.position_embedding is None:
            return x_brtd, Places(positions_t, angles(self.config, positions_t))
        before = 0 if shared is None else shared[0].length
        length = before + (x_brtd.shape[2] if written is None else written[0].length)
        most = self.config.max_position_embeddings
        if length > most:
            raise UserError(
                f"{length} places (prefix and caption), but this {self.config.model_type} has "
                f"learned positions for {most}; give fewer tokens, or a pooled projector"
            )
        table = jnp.take(self.position_embedding[...], positions_t, axis=0)
        return constrain(x_brtd + table.astype(x_brtd.dtype), "batch"), Places(positions_t, None)

    def _scan(
        self,
        layers: Block,
        x_brtd: Array,
        places: Places,
        kinds: Sequence[LayerKind],
        shared: KVCache | None,
    ) -> tuple[Array, KVCache]:
        """The layers one after the other in a `lax.scan` over their stacked parameters.

        Where they differ, what each of them is is scanned too; a window that has none is one that
        is longer than any text.
        """
        structure, params = split(layers)
        one = structure.unstacked()
        alike = len(set(kinds)) == 1
        far = jnp.iinfo(jnp.int32).max
        each = LayerKind(
            jnp.asarray([far if kind.window is None else kind.window for kind in kinds]),
            jnp.asarray([kind.turns for kind in kinds]),
        )

        def layer(
            x_brtd: Array, own: tuple[Params, LayerKind | None, KV | None]
        ) -> tuple[Array, KV]:
            params, kind, shared = own
            return one.merge(params)(x_brtd, places, kind or kinds[0], shared, None)

        if self.remat != "none":
            # A scan's body is compiled alone: nothing outside could be merged with what it repeats.
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        prefixes = None if shared is None else jax.tree.map(lambda *x: jnp.stack(x), *shared)
        x_brtd, kv = jax.lax.scan(layer, x_brtd, (params, None if alike else each, prefixes))
        return x_brtd, tuple(KV(k, v) for k, v in zip(kv.k, kv.v, strict=True))


def _as(kind: LayerKind, layer: Block) -> Callable[..., tuple[Array, KV]]:
    """A layer as a function of what it reads."""
    return lambda x_brtd, places, *caches: layer(x_brtd, places, kind, *caches)
