"""What a captioner asks of its frozen encoder, whichever network it is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from flax import nnx

from har_jax.types import AnyArray, Array, DTypeLike, Float


@runtime_checkable
class EncoderConfig(Protocol):
    """Hyper-parameters of an encoder: the shapes of what it reads and says, and how to build it."""

    @property
    def model_type(self) -> str:
        """Of the vision tower alone, as Hugging Face calls it; for `families.registry`."""
        ...

    @property
    def what(self) -> str:
        """The family's name, for people."""
        ...

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def n_extra(self) -> int:
        """How many tokens stand before those of the patches: a class token, registers."""
        ...

    @property
    def n_patches(self) -> int: ...

    @property
    def image_size(self) -> int:
        """Of both sides of the images that it reads."""
        ...

    @property
    def patch_size(self) -> int: ...
    @property
    def num_channels(self) -> int: ...

    @property
    def pools(self) -> bool:
        """Whether it has one vector for a whole image."""
        ...

    def check_layer(self, layer: int) -> int:
        """How many layers are run for `hidden_states[layer]`; `UserError` if there is no such."""
        ...

    def reading(self, height: int, width: int) -> EncoderConfig:
        """This encoder for images of such a size; `UserError` where it cannot read them."""
        ...

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike, **options: Any) -> Encoder:
        """The encoder with random parameters in `dtype`; options are those of its constructor."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Normalised pixels `[B,H,W,C]` to features."""

    config: Any  # an `EncoderConfig`

    def hidden(self, pixels: Float[AnyArray, "B H W C"], layer: int) -> Float[Array, "B N D"]:
        """`hidden_states[layer]` of transformers: 0 is before all layers, -1 behind the last.

        N is `n_extra` and the patches, row by row. Layers behind `layer` are not computed.
        """
        ...

    def pooled(self, pixels: Float[AnyArray, "B H W C"]) -> Float[Array, "B D"]:
        """transformers' `pooler_output`: one vector for the whole image."""
        ...
