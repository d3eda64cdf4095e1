"""What a captioner asks of its decoder, whichever network it is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from flax import nnx

from har_jax.models.attention import KVCache
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int


@runtime_checkable
class DecoderConfig(Protocol):
    """Hyper-parameters of a decoder: what the captioner and the loop need to know, and how to
    build.

    `model_type` is the family's name in Hugging Face's `config.json`; `interchange.families` has
    its table of weights under that name.
    """

    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike, **options: Any) -> Decoder:
        """The decoder with random parameters in `dtype`; options are those of its constructor."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """B prefixes of P tokens, and R captions of T tokens after each (`[B,R,T]` throughout)."""

    def embed(self, tokens: Int[AnyArray, "*batch"], dtype: DTypeLike) -> Float[Array, "*batch D"]:
        """Token ids to inputs of the first layer."""
        ...

    def prefill(self, x_bpd: Float[Array, "B P D"]) -> tuple[Float[Array, "B P D"], KVCache]:
        """A whole prefix, causally: final hidden states, and keys and values of its P places."""
        ...

    def extend(self, x_brtd: Float[Array, "B R T D"], prefix: KVCache) -> Float[Array, "B R T D"]:
        """R known captions after each prefix (teacher forcing): final hidden states."""
        ...

    def step(
        self, x_brd: Float[Array, "B R D"], prefix: KVCache, written: KVCache, t: Int[Array, ""]
    ) -> tuple[Float[Array, "B R D"], KVCache]:
        """The t-th token of each caption: its hidden state, and the captions' cache with it."""
        ...

    def empty_cache(self, b: int, r: int, t: int, dtype: DTypeLike) -> KVCache:
        """Room for keys and values of T tokens of `[B,R]` captions."""
        ...

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32."""
        ...

    def for_decoding(self) -> Decoder:
        """The same decoder as a loop of `step`s is to read it: layers apart."""
        ...
