"""What a captioner asks of its frozen encoder, whichever network it is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from flax import nnx

from har_jax.types import AnyArray, Array, DTypeLike, Float


@runtime_checkable
class EncoderConfig(Protocol):
    """Hyper-parameters of an encoder: the shapes of what it reads and says, and how to build it."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def n_patches(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def num_channels(self) -> int: ...

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike, **options: Any) -> Encoder:
        """The encoder with random parameters in `dtype`; options are those of its constructor."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Normalised pixels `[B,H,W,C]` to features."""

    def features(self, pixels: Float[AnyArray, "B H W C"], layer: int) -> Float[Array, "B S D"]:
        """Patch tokens of a layer, counted from either end as Hugging Face counts hidden states."""
        ...

    def pooled(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B D"]:
        """One vector for the whole image."""
        ...
