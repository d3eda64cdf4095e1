"""SigLIP's text tower, which reads both ways, and both towers as a score of captions (Zhai et al.
2023, arXiv:2303.15343). Equal to what `transformers` calls `pooler_output` and `logits_per_image`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.encoders.clip import unit
from har_jax.models.encoders.siglip import SiglipVisionConfig, SiglipVisionTower
from har_jax.models.encoders.tower import Block, TowerConfig
from har_jax.models.layers import Embedding, LayerNorm, Linear, normal, param
from har_jax.models.sizes import Epsilon, Rows, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


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
    vision: SiglipVisionConfig = SiglipVisionConfig()  # noqa: RUF009 it is frozen
    text: SiglipTextConfig = SiglipTextConfig()


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
