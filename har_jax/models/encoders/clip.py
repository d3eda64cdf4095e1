"""CLIP's two towers (Radford et al. 2021, arXiv:2103.00020), for any Hugging Face CLIP config.

The captioner uses the vision tower alone (`VisionTower.features`, or `pooled`); CLIPScore and the
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
from har_jax.models.functional import fold, stack
from har_jax.models.layers import Embedding, LayerNorm, Linear, normal, param
from har_jax.models.sizes import Exponent, Pixels, Rows, TokenId, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int

MAX_LOGIT_SCALE = 100.0
"""Radford et al. clip the learnt temperature there, and so do we in training."""


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Width = 12
    num_channels: Width = 3
    image_size: Pixels = 224
    patch_size: Pixels = 32

    def __post_init__(self):
        super().__post_init__()
        if self.num_channels != 3:
            raise UserError(
                f"CLIP config: num_channels is {self.num_channels}, and images are read as RGB; "
                "give a CLIP of 3"
            )
        if self.patch_size > self.image_size:
            raise UserError(
                f"CLIP config: patch_size {self.patch_size} is larger than image_size "
                f"{self.image_size}, so that there is no patch; correct the config.json"
            )

    @property
    def grid(self) -> int:
        """Patches along one side. As in a strided convolution, a remainder of pixels is dropped."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2

    def check_layer(self, layer: int) -> int:
        """How many layers are run for `hidden_states[layer]`; `UserError` if there is no such."""
        n_layers = self.num_hidden_layers
        n_run = layer if layer >= 0 else n_layers + 1 + layer
        if not 0 <= n_run <= n_layers:
            raise UserError(
                f"CLIP feature layer {layer} of a tower of {n_layers} layers; allowed: "
                f"{-n_layers - 1} to {n_layers}"
            )
        return n_run

    def build(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any
    ) -> VisionTower:
        """See `protocol.EncoderConfig`."""
        return VisionTower(self, rngs=rngs, dtype=dtype, **options)


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


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """L2-normalised in float32, whatever came in: cosine similarities are compared to 4 digits."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class VisionTower(nnx.Module):
    """A ViT with a class token. `pixels` is [B,H,W,3] float, normalised by the `Preprocessor`.

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
        d, p = config.hidden_size, config.patch_size
        self.config = config
        kw = {"rngs": rngs, "dtype": dtype}
        patch_axes = ("patch", "patch", None, "embed")
        self.patch_embedding = Linear((p, p, config.num_channels), (d,), patch_axes, **kw)
        self.class_embedding = param(rngs, (d,), ("embed",), normal(d**-0.5), dtype)
        positions = (config.n_patches + 1, d)
        self.position_embedding = param(rngs, positions, ("position", "embed"), normal(), dtype)
        self.pre_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        n_layers = config.num_hidden_layers

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs, dtype=dtype, attention=attention)

        self.layers: nnx.List[Block] | Block = (
            stack(lambda key: block(nnx.Rngs(key)), n_layers, rngs.params())
            if scan_layers
            else nnx.List([block(rngs) for _ in range(n_layers)])
        )
        self.post_norm = LayerNorm(d, config.layer_norm_eps, **kw)
        self.projection = None if projection_dim is None else _projection(d, projection_dim, **kw)

    def patchify(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B S p p C"]:
        """Rows of patches, left to right, top to bottom. One reshape instead of a convolution."""
        b, height, width, channels = pixels.shape
        size, p, g = self.config.image_size, self.config.patch_size, self.config.grid
        if (height, width, channels) != (size, size, self.config.num_channels):
            raise UserError(
                f"images of shape {height}x{width}x{channels}, but this CLIP takes "
                f"{size}x{size}x{self.config.num_channels}; prepare them with "
                "data.images.Preprocessor.from_hf(the CLIP's directory)"
            )
        # [B,gp,gp,C] → [B, g, p, g, p, C] → [B, g, g, p, p, C] → [B, S, p, p, C]
        x = jnp.asarray(pixels)[:, : g * p, : g * p]
        x = x.reshape(b, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, g * g, p, p, channels)

    def hidden(self, pixels: Float[AnyArray, "B H W C"], layer: int = -1) -> Float[Array, "B S1 D"]:
        """`hidden_states[layer]` of transformers, CLS first: 0 is before all layers, -1 the last.

        Layers behind `layer` are not computed.
        """
        n_run = self.config.check_layer(layer)
        x_bsd = self.patch_embedding(self.patchify(pixels))
        cls = self.class_embedding[...].astype(x_bsd.dtype)
        cls = jnp.broadcast_to(cls, (x_bsd.shape[0], 1, x_bsd.shape[-1]))
        x_bsd = jnp.concatenate([cls, x_bsd], axis=1)
        x_bsd = self.pre_norm(x_bsd + self.position_embedding[...].astype(x_bsd.dtype))
        if isinstance(self.layers, Block):
            return fold(self.layers, n_run, lambda block, x: block(x, None)[0], x_bsd)
        for block in self.layers[:n_run]:
            x_bsd, _ = block(x_bsd, None)
        return x_bsd

    def features(
        self, pixels: Float[AnyArray, "B H W C"], layer: int = -2, with_cls: bool = False
    ) -> Float[Array, "B S D"]:
        """Patch tokens of a layer; -2 is LLaVA's choice (arXiv:2304.08485): the last layer of a
        tower trained only through its CLS token need not keep its patches informative."""
        hidden = self.hidden(pixels, layer)
        return hidden if with_cls else hidden[:, 1:]

    def pooled(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B D"]:
        """The last layer's CLS, layer-normed."""
        return self.post_norm(self.hidden(pixels)[:, 0])

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
