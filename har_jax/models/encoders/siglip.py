"""SigLIP's vision tower (Zhai et al. 2023, arXiv:2303.15343), and that of SigLIP 2 where images
have one size: no class token, and attention pooling over the patches.

What each method returns equals what `transformers` calls it: `hidden_states[layer]` and
`pooler_output`, which are the embeddings too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.encoders.vit import ViT, ViTConfig, new_blocks, patch_embedding, tokens
from har_jax.models.layers import MLP, LayerNorm, Linear, normal, param
from har_jax.models.sizes import Epsilon, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float


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


class SiglipVisionTower(ViT, of=SiglipVisionConfig):
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
        self.position_embedding = tokens(config.n_patches, d, **kw)
        self.layers = new_blocks(config, scan_layers, attention, **kw)
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
