"""What a decoder of the transformer's kind is, as numbers and options."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from har_jax.errors import UserError
from har_jax.models.layers import check_sizes
from har_jax.models.sizes import Base, Epsilon, Layers, Rows, TokenId, Width
from har_jax.types import Array, Bool, Int

Factor = Annotated[float, Meta(gt=0, le=1e6)]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary positions that reach further than those of a model's first training, under Hugging
    Face's names; see `rope.frequencies`."""

    rope_type: Literal["linear", "llama3"]
    factor: Factor
    low_freq_factor: Factor = 1.0
    high_freq_factor: Factor = 4.0
    original_max_position_embeddings: Rows = 8192

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"rotary positions: high_freq_factor {self.high_freq_factor} is not larger than "
                f"low_freq_factor {self.low_freq_factor}; correct the config.json"
            )


class LayerKind(NamedTuple):
    """How the layers of one decoder may differ; of layers that are scanned, each field an array.

    Attributes:
      window: how many places back a layer sees, itself included; None: all of them.
      turns: whether queries and keys are turned by their positions.
    """

    window: int | Int[Array, ""] | None
    turns: bool | Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters under Hugging Face's names (`config.json`), and the options in which
    families differ; the defaults are Mistral-7B's.

    Attributes:
      norm: "rms" without mean and bias, or "layer" with both; `rms_norm_eps` is of either.
      positions: "rotary", or "learned", which are added to the embeddings and end with
        `max_position_embeddings`.
      partial_rotary_factor: the share of a head that is turned, its first numbers.
      rotary_layers, sliding_layers: whether each layer turns, and has the window; None: all.
      qkv_bias, out_bias, mlp_bias: whether these linears have one.
      fused_qkv: one kernel `[D,3,N,H]` makes q, k and v, where the family's files have one.
      qk_norm: each head of q and k is normalised before it is turned.
      gated: `down(act(gate(x)) * up(x))`, or else `down(act(up(x)))`.
    """

    model_type: str = "mistral"
    vocab_size: Rows = 32_000
    hidden_size: Width = 4096
    intermediate_size: Width = 14_336
    num_hidden_layers: Layers = 32
    num_attention_heads: Width = 32
    num_key_value_heads: Width = 8
    head_dim: Width = 128
    hidden_act: str = "silu"
    max_position_embeddings: Rows = 32_768
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Base = 10_000.0
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: Annotated[float, Meta(gt=0, le=1)] = 1.0
    rotary_layers: tuple[bool, ...] | None = None
    sliding_window: Rows | None = 4096
    sliding_layers: tuple[bool, ...] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: TokenId | None = 1
    eos_token_id: TokenId | tuple[TokenId, ...] | None = 2
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    fused_qkv: bool = False
    qk_norm: bool = False
    gated: bool = True

    def __post_init__(self) -> None:
        heads = ("num_attention_heads", "num_key_value_heads")
        check_sizes(self.model_type, self, *heads, "hidden_act")
        if self.positions == "rotary" and self.turned % 2:
            raise UserError(
                f"{self.model_type} config: positions turn {self.turned} numbers of a head (of its "
                f"head_dim {self.head_dim}), which is odd, where they turn pairs of numbers; "
                "correct the config.json"
            )
        if self.fused_qkv and self.num_key_value_heads != self.num_attention_heads:
            raise UserError(
                f"{self.model_type} config: {self.num_key_value_heads} key-value heads beside "
                f"{self.num_attention_heads} heads, where one kernel makes all three; correct the "
                "config.json"
            )
        for name in ("rotary_layers", "sliding_layers"):
            each = getattr(self, name)
            if each is not None and len(each) != self.num_hidden_layers:
                raise UserError(
                    f"{self.model_type} config: {len(each)} entries that say what each layer is, "
                    f"but {self.num_hidden_layers} layers; correct the config.json"
                )

    @property
    def turned(self) -> int:
        """How many numbers of a head the rotary positions turn."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def most_positions(self) -> int | None:
        """How many places a sequence may have; None: rotary positions have no end."""
        return self.max_position_embeddings if self.positions == "learned" else None

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Of each layer."""
        n, none = self.num_hidden_layers, self.positions == "learned"
        sliding = self.sliding_layers or (True,) * n
        turns = (False,) * n if none else self.rotary_layers or (True,) * n
        windows = (self.sliding_window if here else None for here in sliding)
        return tuple(LayerKind(*kind) for kind in zip(windows, turns, strict=True))
