"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193), with or without registers (Darcet et al. 2023,
arXiv:2309.16588), trained on images alone: `hidden_states[layer]` and `pooler_output` of
transformers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp
from flax import nnx
from msgspec import Meta

from har_jax.models.encoders import vit
from har_jax.models.encoders.positions import resized
from har_jax.models.layers import LayerNorm
from har_jax.models.sizes import Epsilon, Pixels, Width
from har_jax.types import Array, DTypeLike, Float

Registers = Annotated[int, Meta(ge=1, le=2**10)]
Ratio = Annotated[float, Meta(gt=0, le=2**10)]


@dataclasses.dataclass(frozen=True)
class Dinov2Config(vit.ViTConfig):
    """`image_size` is that of the images that it reads, `trained_size` (0: the same) that of the
    table of positions, which is resized where the two differ."""

    hidden_size: Width = 768
    intermediate_size: int = dataclasses.field(init=False, default=0)
    num_attention_heads: Width = 12
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    patch_size: Pixels = 14
    trained_size: int = 0
    mlp_ratio: Ratio = 4
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True  # in the files; nothing is masked here
    num_register_tokens: Registers | None = None  # None: a model of the kind without them

    what = "DINOv2"
    resizes = True
    layer_scale = True

    def __post_init__(self):
        width = int(self.hidden_size * self.mlp_ratio)
        if self.use_swiglu_ffn:  # two thirds of it, as a multiple of 8
            width = (int(width * 2 / 3) + 7) // 8 * 8
        object.__setattr__(self, "intermediate_size", width)
        object.__setattr__(self, "trained_size", self.trained_size or self.image_size)
        super().__post_init__()

    @property
    def gated(self) -> bool:
        """See `tower.TowerConfig`."""
        return self.use_swiglu_ffn

    @property
    def model_type(self) -> str:
        """See `protocol.EncoderConfig`."""
        return "dinov2" if self.num_register_tokens is None else "dinov2_with_registers"

    @property
    def n_extra(self) -> int:
        """The class token and the registers."""
        return 1 + (self.num_register_tokens or 0)


class Dinov2Tower(vit.ViT, of=Dinov2Config):
    """A ViT with a class token, and registers before the patches; `whole` keeps the token that
    stood for what was masked in training, which files have."""

    def __init__(
        self,
        config: Dinov2Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        scan_layers: bool = False,
        attention: str = "blocks",
        whole: bool = False,
    ):
        d, kw = config.hidden_size, {"rngs": rngs, "dtype": dtype}
        self.config = config
        registers = config.num_register_tokens
        self.patch_embedding = vit.patch_embedding(config, bias=True, **kw)
        self.class_embedding = vit.tokens(d, **kw)
        self.mask_embedding = vit.tokens(d, **kw) if whole and config.use_mask_token else None
        self.registers = None if registers is None else vit.tokens(registers, d, **kw)
        trained = (config.trained_size // config.patch_size) ** 2
        self.position_embedding = vit.tokens(trained + 1, d, **kw)
        self.layers = vit.new_blocks(config, scan_layers, attention, **kw)
        self.norm = LayerNorm(d, config.layer_norm_eps, **kw)

    def embedded(self, patches: Float[Array, "B S p p C"]) -> Float[Array, "B N D"]:
        """See `ViT`: the class token, the registers, which have no positions, the patches."""
        x_bsd, positions_sd = self.patch_embedding(patches), self.position_embedding[...]
        # As transformers does: with registers, averaging over what is left out; without, not.
        averaging = self.registers is not None
        own_sd = resized(positions_sd[1:], self.config.grid, averaging=averaging)
        x_bsd = x_bsd + own_sd.astype(x_bsd.dtype)
        first_nd = (self.class_embedding[...] + positions_sd[:1]).astype(x_bsd.dtype)
        if self.registers is not None:
            first_nd = jnp.concatenate([first_nd, self.registers[...].astype(x_bsd.dtype)])
        return vit.with_first(first_nd, x_bsd)

    def pool(self, last_bnd: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """See `ViT`: the class token, layer-normed."""
        return self.norm(last_bnd[:, 0])
