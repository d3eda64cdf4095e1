"""One layer of the transformer: attention of R captions over a shared prefix, and a perceptron."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from har_jax.models.attention import KV, attend, attend_alone, heads_first
from har_jax.models.decoders.options import LayerKind, Options
from har_jax.models.decoders.rope import rotate
from har_jax.models.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm
from har_jax.sharding import constrain
from har_jax.types import Array, DTypeLike, Float, Int


class Places(NamedTuple):
    """Where the tokens of a pass stand: the same for every layer.

    Attributes:
      positions_t: counted from the prefix's first.
      angles_t1h: of `rope.angles`; None where positions are learned.
    """

    positions_t: Int[Array, " T"]
    angles_t1h: Float[Array, "T 1 half"] | None


def norm(config: Options, *, rngs: nnx.Rngs, dtype: DTypeLike) -> RMSNorm | LayerNorm:
    """Of the residual stream."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, config.rms_norm_eps, rngs=rngs, dtype=dtype)


class Attention(nnx.Module):
    """Grouped-query attention."""

    def __init__(
        self, config: Options, *, rngs: nnx.Rngs, dtype: DTypeLike, attention: str = "blocks"
    ):
        """`attention` is `config.CaptionerSettings`'."""
        d, h, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        n, k = config.num_attention_heads, config.num_key_value_heads
        kw: dict[str, Any] = {"rngs": rngs, "dtype": dtype}

        def heads(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Linear:
            axes = ("embed", *axes, "head_dim")
            return Linear((d,), (*shape, h), axes, bias=config.qkv_bias, **kw)

        self.qkv: Linear | None = nnx.data(None)
        if config.fused_qkv:
            self.qkv = heads((3, n), (None, "heads"))
        else:
            self.q, self.k, self.v = (
                heads((size,), (axis,))
                for size, axis in ((n, "heads"), (k, "kv_heads"), (k, "kv_heads"))
            )
        out_axes = ("heads", "head_dim", "embed")
        self.o = Linear((n, h), (d,), out_axes, bias=config.out_bias, **kw)
        self.q_norm: RMSNorm | None = nnx.data(None)
        self.k_norm: RMSNorm | None = nnx.data(None)
        if config.qk_norm:
            self.q_norm = RMSNorm(h, eps, axis="head_dim", **kw)
            self.k_norm = RMSNorm(h, eps, axis="head_dim", **kw)
        self.kernel = attention

    def __call__(
        self,
        x_brtd: Float[Array, "B R T D"],
        places: Places,
        kind: LayerKind,
        shared: KV | None,
        written: KV | None,
    ) -> tuple[Float[Array, "B R T D"], KV]:
        q_brtnh, k_brtkh, v_brtkh = self._heads(x_brtd)
        if places.angles_t1h is not None:
            q_brtnh = rotate(q_brtnh, places.angles_t1h, kind.turns)
            k_brtkh = rotate(k_brtkh, places.angles_t1h, kind.turns)
        own = KV(heads_first(k_brtkh), heads_first(v_brtkh))
        window, at_t = kind.window, places.positions_t
        alone = shared is None and written is None and self.kernel != "blocks"
        # A kernel of JAX's takes no window that is an array, as one of scanned layers may be.
        if alone and (window is None or isinstance(window, int)):
            q, k, v = q_brtnh[:, 0], k_brtkh[:, 0], v_brtkh[:, 0]
            out = attend_alone(q, k, v, causal=True, window=window, kernel=self.kernel)
            return self.o(out[:, None]), own
        if written is not None:  # one token: write it into its slot of the caption's cache
            own = written.with_slot(own, at_t[0] - (0 if shared is None else shared.length))
        return self.o(attend(q_brtnh, at_t, shared, own, window)), own

    def _heads(self, x_brtd: Float[Array, "B R T D"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values `[B,R,T,heads,H]`, before they are turned."""
        if self.qkv is not None:
            q, k, v = jnp.moveaxis(self.qkv(x_brtd), -3, 0)
        else:
            q, k, v = self.q(x_brtd), self.k(x_brtd), self.v(x_brtd)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))` (SwiGLU), or without a gate `down(act(up(x)))`."""

    def __init__(self, config: Options, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, f = config.hidden_size, config.intermediate_size
        kw: dict[str, Any] = {"bias": config.mlp_bias, "rngs": rngs, "dtype": dtype}
        into = ("embed", "mlp")
        self.gate = Linear((d,), (f,), into, **kw) if config.gated else nnx.data(None)
        self.up = Linear((d,), (f,), into, **kw)
        self.down = Linear((f,), (d,), ("mlp", "embed"), **kw)
        self.activation = config.hidden_act

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        act = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(act(self.up(x)))
        return self.down(act(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm layer: attention, then the perceptron, each added to what it read."""

    def __init__(
        self, config: Options, *, rngs: nnx.Rngs, dtype: DTypeLike, attention: str = "blocks"
    ):
        self.attn_norm = norm(config, rngs=rngs, dtype=dtype)
        self.attn = Attention(config, rngs=rngs, dtype=dtype, attention=attention)
        self.mlp_norm = norm(config, rngs=rngs, dtype=dtype)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x_brtd: Float[Array, "B R T D"],
        places: Places,
        kind: LayerKind,
        shared: KV | None,
        written: KV | None,
    ) -> tuple[Float[Array, "B R T D"], KV]:
        attended, own = self.attn(self.attn_norm(x_brtd), places, kind, shared, written)
        x_brtd = constrain(x_brtd + attended, "batch")
        x_brtd = constrain(x_brtd + self.mlp(self.mlp_norm(x_brtd)), "batch")
        return x_brtd, own
