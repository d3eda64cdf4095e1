"""What the vision towers of all families share: images cut into patches, and hidden states of any
layer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.encoders.tower import Block, TowerConfig
from har_jax.models.functional import fold, stack
from har_jax.models.layers import Linear, normal, param
from har_jax.models.sizes import Pixels, Width
from har_jax.types import AnyArray, Array, DTypeLike, Float

Blocks = nnx.List[Block] | Block
"""The layers of a tower: apart, or stacked into one (`functional.stack`)."""


@dataclasses.dataclass(frozen=True)
class ViTConfig(TowerConfig):
    """A tower that reads square images; see `protocol.EncoderConfig`."""

    tower: ClassVar[Callable[..., ViT]]  # what it configures
    resizes = False  # whether its positions are resized for images of any size; no field

    num_channels: Width = 3
    image_size: Pixels = 224
    patch_size: Pixels = 16

    def __post_init__(self):
        super().__post_init__()
        if self.num_channels != 3:
            raise UserError(
                f"{self.what} config: num_channels is {self.num_channels}, and images are read as "
                f"RGB; give a {self.what} of 3"
            )
        if self.patch_size > self.image_size:
            raise UserError(
                f"{self.what} config: patch_size {self.patch_size} is larger than image_size "
                f"{self.image_size}, so that there is no patch; correct the config.json"
            )

    @property
    def n_extra(self) -> int:
        """See `protocol.EncoderConfig`."""
        return 0

    @property
    def pools(self) -> bool:
        """See `protocol.EncoderConfig`."""
        return True

    @property
    def grid(self) -> int:
        """Patches along one side. As in a strided convolution, a remainder of pixels is dropped."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, **options: Any) -> ViT:
        """See `protocol.EncoderConfig`."""
        return type(self).tower(self, rngs=rngs, dtype=dtype, **options)

    def check_layer(self, layer: int) -> int:
        """See `protocol.EncoderConfig`."""
        n_layers = self.num_hidden_layers
        n_run = layer if layer >= 0 else n_layers + 1 + layer
        if not 0 <= n_run <= n_layers:
            raise UserError(
                f"{self.what} feature layer {layer} of a tower of {n_layers} layers; allowed: "
                f"{-n_layers - 1} to {n_layers}"
            )
        return n_run

    def reading(self, height: int, width: int) -> ViTConfig:
        """See `protocol.EncoderConfig`. There is one size, unless positions are resized."""
        if self.resizes and height == width and height >= self.patch_size:
            return dataclasses.replace(self, image_size=height)
        if self.resizes:
            raise UserError(
                f"preprocessor_config.json makes images of {height}x{width}, but a {self.what} is "
                f"read here on squares of at least one patch, {self.patch_size}x{self.patch_size}; "
                "set its crop_size"
            )
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"preprocessor_config.json makes images of {height}x{width}, but this {self.what} "
                f"takes {self.image_size}x{self.image_size} (config.json); correct one of the two"
            )
        return self


class ViT(nnx.Module):
    """A vision tower; a family says how patches become the input of the layers (`embedded`), and
    what is made of the last one (`pooled`). `pixels` are normalised by the `Preprocessor`."""

    config: ViTConfig
    layers: Blocks

    def __init_subclass__(cls, of: type[ViTConfig], **others: Any):
        """`of` is the configuration that builds it."""
        super().__init_subclass__(**others)
        of.tower = cls

    def patchify(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B S p p C"]:
        """Rows of patches, left to right, top to bottom. One reshape instead of a convolution."""
        b, height, width, channels = pixels.shape
        size, p, g = self.config.image_size, self.config.patch_size, self.config.grid
        if (height, width, channels) != (size, size, self.config.num_channels):
            what = self.config.what
            raise UserError(
                f"images of shape {height}x{width}x{channels}, but this {what} takes "
                f"{size}x{size}x{self.config.num_channels}; prepare them with "
                f"data.images.Preprocessor.from_hf(the {what}'s directory)"
            )
        # [B,gp,gp,C] → [B, g, p, g, p, C] → [B, g, g, p, p, C] → [B, S, p, p, C]
        x = jnp.asarray(pixels)[:, : g * p, : g * p]
        x = x.reshape(b, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, g * g, p, p, channels)

    @abc.abstractmethod
    def embedded(self, patches: Float[Array, "B S p p C"]) -> Float[Array, "B N D"]:
        """What the first layer reads: tokens with their positions, `n_extra` before the patches."""

    @abc.abstractmethod
    def pool(self, last_bnd: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """What is made of the last layer for `pooled`."""

    def pooled(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B D"]:
        """See `protocol.Encoder`."""
        return self.pool(self.hidden(pixels))

    def hidden(self, pixels: Float[AnyArray, "B H W C"], layer: int = -1) -> Float[Array, "B N D"]:
        """See `protocol.Encoder`; N is `n_extra` + S."""
        n_run = self.config.check_layer(layer)
        x_bnd = self.embedded(self.patchify(pixels))
        if isinstance(self.layers, Block):
            return fold(self.layers, n_run, lambda block, x: block(x, None)[0], x_bnd)
        for block in self.layers[:n_run]:
            x_bnd, _ = block(x_bnd, None)
        return x_bnd


def new_blocks(
    config: ViTConfig, scan_layers: bool, attention: str, *, rngs: nnx.Rngs, dtype: DTypeLike
) -> Blocks:
    """The layers of a tower; stacked where they are to be scanned."""

    def build(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs, dtype=dtype, attention=attention)

    count = config.num_hidden_layers
    if scan_layers:
        return stack(lambda key: build(nnx.Rngs(key)), count, rngs.params())
    return nnx.List([build(rngs) for _ in range(count)])


def tokens(*shape: int, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Param[Array]:
    """Learnt vectors: one, or as many as the first of two numbers says."""
    axes = ("position",) * (len(shape) - 1) + ("embed",)
    return param(rngs, shape, axes, normal(), dtype)


def patch_embedding(
    config: ViTConfig, *, bias: bool = False, rngs: nnx.Rngs, dtype: DTypeLike
) -> Linear:
    """From a patch to a token: [p,p,C] → [D]."""
    p, axes = config.patch_size, ("patch", "patch", None, "embed")
    make: dict[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
    return Linear((p, p, config.num_channels), (config.hidden_size,), axes, **make)


def with_first(token_nd: Float[Array, "N D"], x_bsd: Float[Array, "B S D"]) -> Array:
    """Learnt tokens before those of each image."""
    token_nd = token_nd.astype(x_bsd.dtype)
    first = jnp.broadcast_to(token_nd, (x_bsd.shape[0], *token_nd.shape))
    return jnp.concatenate([first, x_bsd], axis=1)
