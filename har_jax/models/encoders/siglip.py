"""SigLIP's two towers (Zhai et al. 2023, arXiv:2303.15343), and those of SigLIP 2 where images
have one size: no class token, attention pooling over the patches, and texts read both ways.

What each method returns equals what `transformers` calls it: `hidden_states[layer]` and
`pooler_output`, which are the embeddings too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.encoders.clip import unit
from har_jax.models.encoders.tower import Block, TowerConfig
from har_jax.models.encoders.vit import ViT, ViTConfig, new_blocks, patch_embedding
from har_jax.models.layers import MLP, Embedding, LayerNorm, Linear, normal, param
from har_jax.models.sizes import Epsilon, Rows, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(ViTConfig):
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Width = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    vision_use_head: bool = True  # whether it pools

    what = "SigLIP"
    model_type = "siglip_vision_model"

    @property
    def pools(self) -> bool:
        """See `protocol.EncoderConfig`."""
        return self.vision_use_head

    def build(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any
    ) -> SiglipVisionTower:
        """See `protocol.EncoderConfig`."""
        return SiglipVisionTower(self, rngs=rngs, dtype=dtype, **options)


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig(TowerConfig):
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Width = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    vocab_size: Rows = 32_000
    max_position_embeddings: Rows = 64
    projection_size: Width | None = None  # None: as wide as the tower

    what = "SigLIP"

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.projection_size or self.hidden_size


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    vision: SiglipVisionConfig = SiglipVisionConfig()
    text: SiglipTextConfig = SiglipTextConfig()


class AttentionPooling(nnx.Module):
    """A learnt query that looks at all patches, and an MLP: [B,S,D] → [B,D]."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, n = config.hidden_size, config.num_attention_heads
        h, kw = config.head_dim, {"rngs": rngs, "dtype": dtype}
        self.probe = param(rngs, (d,), ("embed",), normal(d**-0.5), dtype)
        axes, init = ("embed", None, "heads", "head_dim"), normal(d**-0.5)
        self.qkv = Linear((d,), (3, n, h), axes, bias=True, init=init, **kw)
        self.o = Linear((n, h), (d,), ("heads", "head_dim", "embed"), bias=True, init=init, **kw)
        self.norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.mlp = MLP(d, config.intermediate_size, config.hidden_act, (init, init), **kw)

    def __call__(self, x_bsd: Float[Array, "B S D"]) -> Float[Array, "B D"]:
        q_nh = self.qkv(self.probe[...].astype(x_bsd.dtype))[0]
        q_nh = q_nh * q_nh.shape[-1] ** -0.5
        _, k_bsnh, v_bsnh = jnp.moveaxis(self.qkv(x_bsd), 2, 0)
        scores = jnp.einsum("nh,bsnh->bns", q_nh, k_bsnh, preferred_element_type=jnp.float32)
        weights_bns = jax.nn.softmax(scores, axis=-1).astype(x_bsd.dtype)
        x_bd = self.o(jnp.einsum("bns,bsnh->bnh", weights_bns, v_bsnh))
        return x_bd + self.mlp(self.norm(x_bd))


class SiglipVisionTower(ViT):
    """A ViT without a class token."""

    def __init__(
        self,
        config: SiglipVisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        scan_layers: bool = False,
        attention: str = "blocks",
    ):
        d, kw = config.hidden_size, {"rngs": rngs, "dtype": dtype}
        self.config = config
        self.patch_embedding = patch_embedding(config, bias=True, **kw)
        positions = (config.n_patches, d)
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(), dtype)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs, dtype=dtype, attention=attention)

        self.layers = new_blocks(block, config.num_hidden_layers, rngs, scan_layers)
        self.post_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.head = AttentionPooling(config, **kw) if config.vision_use_head else None

    def embedded(self, patches: Float[Array, "B S p p C"]) -> Float[Array, "B S D"]:
        """See `ViT`."""
        x_bsd = self.patch_embedding(patches)
        return x_bsd + self.position_embedding[...].astype(x_bsd.dtype)

    def pool(self, last_bnd: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """See `ViT`: all patches, layer-normed and pooled by attention."""
        if self.head is None:
            raise UserError(
                "this SigLIP has no pooling head (vision_use_head is false in its config.json), so "
                "it has no one vector for an image; use its patches, or a SigLIP with a head"
            )
        return self.head(self.post_norm(last_bnd))

    def embed(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B D"]:
        """`pooled` is in the space shared with text already; not normalised."""
        return self.pooled(pixels)


class SiglipTextTower(nnx.Module):
    """A transformer over tokens that sees both ways; the state at the last place, which is padding
    in most texts, stands for the text: all texts have `max_position_embeddings` tokens."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d, kw = config.hidden_size, {"rngs": rngs, "dtype": dtype}
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, d, **kw)
        positions = (config.max_position_embeddings, d)
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(), dtype)
        self.layers = nnx.List([Block(config, **kw) for _ in range(config.num_hidden_layers)])
        self.final_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        axes, init = ("embed", "projection"), normal(d**-0.5)
        self.head = Linear((d,), (config.width,), axes, bias=True, init=init, **kw)

    def hidden(
        self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "B T D"]:
        """The last layer, layer-normed."""
        t, most = tokens_bt.shape[1], self.config.max_position_embeddings
        if t > most:
            raise UserError(
                f"a text of {t} tokens, but this SigLIP reads at most {most}; truncate it in the "
                "tokenizer"
            )
        x_btd = self.token_embedding(tokens_bt, dtype)
        x_btd = x_btd + self.position_embedding[...][:t].astype(dtype)
        for block in self.layers:
            x_btd, _ = block(x_btd, None)
        return self.final_norm(x_btd)

    def embed(
        self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "B E"]:
        """The text in the space shared with images; not normalised."""
        return self.head(self.hidden(tokens_bt, dtype)[:, -1])


class Siglip(nnx.Module):
    """Both towers, and the learnt temperature (a logarithm) and bias of their loss."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.vision = SiglipVisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.text = SiglipTextTower(config.text, rngs=rngs, dtype=dtype)
        # Where the authors begin: exp(log 10) and -10.
        self.logit_scale = param(rngs, (), (), jax.nn.initializers.constant(2.3026), dtype)
        self.logit_bias = param(rngs, (), (), jax.nn.initializers.constant(-10.0), dtype)

    def __call__(
        self, pixels: Float[AnyArray, "B H W C"], tokens_nt: Int[AnyArray, "N T"]
    ) -> Float[Array, "B N"]:
        """`logits_per_image`."""
        cosines = unit(self.vision.embed(pixels)) @ unit(self.text.embed(tokens_nt)).T
        scale, bias = self.logit_scale[...], self.logit_bias[...]
        return jnp.exp(scale.astype(jnp.float32)) * cosines + bias.astype(jnp.float32)
