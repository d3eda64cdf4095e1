"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193), with or without registers (Darcet et al. 2023,
arXiv:2309.16588): a ViT that was trained on images alone.

What each method returns equals what `transformers` calls it: `hidden_states[layer]`, and
`pooler_output`, the layer-normed class token.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx
from msgspec import Meta

from har_jax.errors import UserError
from har_jax.models.encoders.positions import resized
from har_jax.models.encoders.tower import Block
from har_jax.models.encoders.vit import ViT, ViTConfig, new_blocks, patch_embedding, with_first
from har_jax.models.layers import LayerNorm, normal, param
from har_jax.models.sizes import Epsilon, Pixels, Width
from har_jax.types import Array, DTypeLike, Float

Registers = Annotated[int, Meta(ge=1, le=2**10)]
Ratio = Annotated[float, Meta(gt=0, le=2**10)]


@dataclasses.dataclass(frozen=True)
class Dinov2Config(ViTConfig):
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

    def __post_init__(self):
        width = int(self.hidden_size * self.mlp_ratio)
        if self.use_swiglu_ffn:  # two thirds of it, as a multiple of 8
            width = (int(width * 2 / 3) + 7) // 8 * 8
        object.__setattr__(self, "intermediate_size", width)
        object.__setattr__(self, "trained_size", self.trained_size or self.image_size)
        super().__post_init__()
        if not width:
            raise UserError(
                f"{self.what} config: mlp_ratio {self.mlp_ratio} leaves no width to its MLP; "
                "correct the config.json"
            )

    @property
    def layer_scale(self) -> bool:
        """See `tower.TowerConfig`."""
        return True

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

    @property
    def trained_grid(self) -> int:
        """Patches along one side of the images that it was trained on last."""
        return self.trained_size // self.patch_size

    def reading(self, height: int, width: int) -> Dinov2Config:
        """See `protocol.EncoderConfig`. Its positions are resized for any square image."""
        if height != width or height < self.patch_size:
            raise UserError(
                f"preprocessor_config.json makes images of {height}x{width}, but a {self.what} is "
                f"read here on squares of at least one patch, {self.patch_size}x{self.patch_size}; "
                "set its crop_size"
            )
        return dataclasses.replace(self, image_size=height)

    def build(
        self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any
    ) -> Dinov2Tower:
        """See `protocol.EncoderConfig`."""
        return Dinov2Tower(self, rngs=rngs, dtype=dtype, **options)


class Dinov2Tower(ViT):
    """A ViT with a class token, and registers before the patches.

    `whole` keeps the token that stands for what was masked in training, which files have.
    """

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

        def token(*rows: int) -> nnx.Param[Array]:
            axes = ("position",) * len(rows) + ("embed",)
            return param(rngs, (*rows, d), axes, normal(), dtype)

        registers = config.num_register_tokens
        self.patch_embedding = patch_embedding(config, bias=True, **kw)
        self.class_embedding = token()
        self.mask_embedding = token() if whole and config.use_mask_token else None
        self.registers = None if registers is None else token(registers)
        self.position_embedding = token(config.trained_grid**2 + 1)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs, dtype=dtype, attention=attention)

        self.layers = new_blocks(block, config.num_hidden_layers, rngs, scan_layers)
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
        return with_first(first_nd, x_bsd)

    def pool(self, last_bnd: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """See `ViT`: the class token, layer-normed."""
        return self.norm(last_bnd[:, 0])
