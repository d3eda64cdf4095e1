"""Decoders behind `protocol.Decoder`. `Mistral` is the transformer with its defaults."""

from har_jax.models.decoders.transformer import Transformer as Mistral
from har_jax.models.decoders.transformer import TransformerConfig as MistralConfig

__all__ = ["Mistral", "MistralConfig"]
