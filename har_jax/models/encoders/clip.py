"""CLIP's two towers (Radford et al. 2021, arXiv:2103.00020), for any Hugging Face CLIP config.

The captioner uses the vision tower alone (`VisionTower.hidden`, or `pooled`); CLIPScore and the
contrastive training of the miniature models use both. What each method returns equals what
`transformers` calls it: `hidden_states[layer]`, `pooler_output`, `image_embeds`, `text_embeds`.

Every tower computes in the dtype of its input activations (pixels, or `dtype=` for text); softmax,
norms and embeddings for cosine similarities are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import KVCache
from har_jax.models.encoders.tower import Block, TowerConfig
from har_jax.models.encoders.vit import (
    ViT,
    ViTConfig,
    new_blocks,
    patch_embedding,
    tokens,
    with_first,
)
from har_jax.models.layers import Embedding, LayerNorm, Linear, normal, param
from har_jax.models.sizes import Exponent, Pixels, Rows, TokenId, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int

MAX_LOGIT_SCALE = 100.0
"""Radford et al. clip the learnt temperature there, and so do we in training."""


@dataclasses.dataclass(frozen=True)
class VisionConfig(ViTConfig):
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Width = 12
    patch_size: Pixels = 32

    model_type = "clip_vision_model"

    @property
    def n_extra(self) -> int:
        """The class token."""
        return 1


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    vocab_size: Rows = 49408
    max_position_embeddings: Rows = 77
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 49406
    eos_token_id: TokenId = 49407


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    projection_dim: Width = 512
    logit_scale_init_value: Exponent = 2.6592

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that `transformers.CLIPModel` reads."""
        shared = {"projection_dim": self.projection_dim}
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
            "text_config": {"model_type": "clip_text_model", **shared, **text},
            "vision_config": {"model_type": "clip_vision_model", **shared, **vision},
        }


def _projection(d: int, size: int, rngs: nnx.Rngs, dtype: DTypeLike) -> Linear:
    axes = ("embed", "projection")
    return Linear((d,), (size,), axes, init=normal(d**-0.5), rngs=rngs, dtype=dtype)


def unit(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """L2-normalised in float32, whatever came in: cosine similarities are compared to 4 digits."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class VisionTower(ViT, of=VisionConfig):
    """A ViT with a class token.

    `projection_dim=None` leaves the projection out (a `CLIPVisionModel` directory has none).
    """

    def __init__(
        self,
        config: VisionConfig,
        projection_dim: int | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        scan_layers: bool = False,
        attention: str = "blocks",
    ):
        d = config.hidden_size
        self.config = config
        kw = {"rngs": rngs, "dtype": dtype}
        self.patch_embedding = patch_embedding(config, **kw)
        self.class_embedding = param(rngs, (d,), ("embed",), normal(d**-0.5), dtype)
        self.position_embedding = tokens(config.n_patches + 1, d, **kw)
        self.pre_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.layers = new_blocks(config, scan_layers, attention, **kw)
        self.post_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.projection = None if projection_dim is None else _projection(d, projection_dim, **kw)

    def embedded(self, patches: Float[Array, "B S p p C"]) -> Float[Array, "B N D"]:
        """See `ViT`: the class token first, then a norm."""
        x_bnd = with_first(self.class_embedding[...][None], self.patch_embedding(patches))
        return self.pre_norm(x_bnd + self.position_embedding[...].astype(x_bnd.dtype))

    def pool(self, last_bnd: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """See `ViT`: the class token, layer-normed."""
        return self.post_norm(last_bnd[:, 0])

    def embed(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B E"]:
        """`pooled` projected into the space shared with text; not normalised."""
        if self.projection is None:
            raise UserError(
                "this vision tower has no projection (its directory holds a CLIPVisionModel); "
                "use `pooled`, or load a CLIPModel directory"
            )
        return self.projection(self.pooled(pixels))


class TextTower(nnx.Module):
    """A causal transformer over tokens; the state at the end-of-text token stands for the text."""

    def __init__(
        self,
        config: TextConfig,
        projection_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        d = config.hidden_size
        self.config = config
        kw = {"rngs": rngs, "dtype": dtype}
        self.token_embedding = Embedding(config.vocab_size, d, **kw)
        positions = (config.max_position_embeddings, d)
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(), dtype)
        self.layers = nnx.List([Block(config, **kw) for _ in range(config.num_hidden_layers)])
        self.final_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.projection = _projection(d, projection_dim, **kw)

    def hidden(
        self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "B T D"]:
        """Layer-normed. What follows a token never changes it: padding needs no mask."""
        return self.final_norm(self._run(tokens_bt, dtype)[0])

    def prefill(self, tokens_bp: Int[AnyArray, "B P"], dtype: DTypeLike = jnp.float32) -> KVCache:
        """Keys and values of beginnings of texts, for `embed_after`."""
        return self._run(tokens_bp, dtype)[1]

    def _run(self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike) -> tuple[Array, KVCache]:
        t = tokens_bt.shape[1]
        if t > self.config.max_position_embeddings:
            raise UserError(
                f"a text of {t} tokens, but this CLIP reads at most "
                f"{self.config.max_position_embeddings}; truncate it in the tokenizer"
            )
        x_btd = self.token_embedding(tokens_bt, dtype)
        x_btd = x_btd + self.position_embedding[...][:t].astype(dtype)
        causal_tt, cache = jnp.tril(jnp.ones((t, t), bool)), []
        for block in self.layers:
            x_btd, kv = block(x_btd, causal_tt)
            cache.append(kv)
        return x_btd, tuple(cache)

    def eot_position(self, tokens_bt: Int[AnyArray, "B T"]) -> Int[Array, " B"]:
        """Where the text ends: the first EOS.

        Configs written before transformers' PR #24773 carry a wrong `eos_token_id` of 2; for them
        it is the highest id, which in OpenAI's vocabulary is end-of-text.
        """
        legacy = self.config.eos_token_id == 2
        marks = tokens_bt if legacy else (tokens_bt == self.config.eos_token_id)
        return jnp.argmax(marks.astype(jnp.int32), axis=-1)

    def pooled(self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike = jnp.float32) -> Array:
        """[B,D], the state at the end-of-text token."""
        at_b11 = self.eot_position(tokens_bt)[:, None, None]
        return jnp.take_along_axis(self.hidden(tokens_bt, dtype), at_b11, axis=1)[:, 0]

    def embed(self, tokens_bt: Int[AnyArray, "B T"], dtype: DTypeLike = jnp.float32) -> Array:
        """[B,E], `pooled` projected; not normalised."""
        return self.projection(self.pooled(tokens_bt, dtype))

    def embed_after(
        self,
        prefix: KVCache,
        start_br: Int[AnyArray, "B R"],
        tokens_brt: Int[AnyArray, "B R T"],
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "B R E"]:
        """`embed` of R texts that begin alike, from what each has of its own.

        The tower is causal, so the text that goes on with `tokens_brt[b, r]` behind the first
        `start_br[b, r]` tokens of prefix b is embedded as if it had been read whole.

        Args:
          prefix: of `prefill`, P tokens each.
          tokens_brt: the rest of each text, up to EOS, then anything.
        """
        p, t = prefix[0].length, tokens_brt.shape[2]
        seen_brp = jnp.arange(p) < jnp.asarray(start_br)[..., None]
        last = self.config.max_position_embeddings - 1
        positions_brt = jnp.minimum(jnp.asarray(start_br)[..., None] + jnp.arange(t), last)
        x_brtd = self.token_embedding(tokens_brt, dtype)
        x_brtd = x_brtd + jnp.take(self.position_embedding[...], positions_brt, axis=0).astype(
            dtype
        )
        for block, kv in zip(self.layers, prefix, strict=True):
            x_brtd = block.after(x_brtd, kv, seen_brp)
        flat = jnp.asarray(tokens_brt).reshape(-1, t)
        at_br11 = self.eot_position(flat).reshape(*tokens_brt.shape[:2], 1, 1)
        pooled_brd = jnp.take_along_axis(x_brtd, at_br11, axis=2)[:, :, 0]
        return self.projection(self.final_norm(pooled_brd))


class CLIP(nnx.Module):
    """Both towers and the learnt temperature (`logit_scale`, a logarithm)."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.vision = VisionTower(config.vision, config.projection_dim, rngs=rngs, dtype=dtype)
        self.text = TextTower(config.text, config.projection_dim, rngs=rngs, dtype=dtype)
        init: Callable = jax.nn.initializers.constant(config.logit_scale_init_value)
        self.logit_scale = param(rngs, (), (), init, dtype)

    def image_embedding(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B E"]:
        """Unit vectors, float32."""
        return unit(self.vision.embed(pixels))

    def text_embedding(self, tokens_bt: Int[AnyArray, "B T"]) -> Float[Array, "B E"]:
        """Unit vectors, float32. Tokens start with BOS and end with EOS, then anything."""
        return unit(self.text.embed(tokens_bt))

    def __call__(
        self, pixels: Float[AnyArray, "B H W C"], tokens_nt: Int[AnyArray, "N T"]
    ) -> Float[Array, "B N"]:
        """`logits_per_image`: cosine similarities times the temperature."""
        scale = jnp.exp(self.logit_scale[...].astype(jnp.float32))
        return scale * self.image_embedding(pixels) @ self.text_embedding(tokens_nt).T
