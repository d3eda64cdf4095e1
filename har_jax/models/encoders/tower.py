"""What the towers of all encoders are made of: pre-norm transformer layers with biases."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import KV, attend_alone, heads_first
from har_jax.models.layers import MLP, LayerNorm, Linear, check_sizes, normal, param
from har_jax.models.sizes import Epsilon, Layers, Width
from har_jax.sharding import constrain
from har_jax.types import Array, Bool, DTypeLike, Float


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What all towers have. Names are those of Hugging Face's configs, defaults CLIP's."""

    what = "CLIP"  # whose it is, for errors; no field
    layer_scale = False  # whether both branches of a layer are scaled, by a vector; no field

    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    def __post_init__(self):
        check_sizes(self.what, self, "hidden_size", "num_attention_heads", "hidden_act")
        if not self.intermediate_size:  # where it is a ratio's
            raise UserError(f"{self.what} config: its MLP has no width; correct the config.json")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def gated(self) -> bool:
        """Whether MLPs are `GatedMLP`s."""
        return False


class Attention(nnx.Module):
    """Multi-head attention with biases, [B,S,D] -> [B,S,D]."""

    def __init__(
        self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, attention: str = "blocks"
    ):
        """`attention` is `config.CaptionerSettings`'."""
        self.kernel = attention
        d, n, h = config.hidden_size, config.num_attention_heads, config.head_dim
        axes = ("embed", "heads", "head_dim")

        def heads(std: float) -> Linear:
            return Linear((d,), (n, h), axes, bias=True, init=normal(std), rngs=rngs, dtype=dtype)

        std = d**-0.5 * (2 * config.num_hidden_layers) ** -0.5
        self.q, self.k, self.v = heads(std), heads(std), heads(std)
        out_axes = ("heads", "head_dim", "embed")
        init = normal(d**-0.5)
        self.o = Linear((n, h), (d,), out_axes, bias=True, init=init, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_bsd: Float[Array, "B S D"], mask_st: Bool[Array, "S T"] | None
    ) -> tuple[Float[Array, "B S D"], KV]:
        """The sequence itself; its keys and values are told beside the result."""
        q_bsnh, k_bsnh, v_bsnh = self.q(x_bsd), self.k(x_bsd), self.v(x_bsd)
        own = KV(heads_first(k_bsnh), heads_first(v_bsnh))
        if mask_st is None and self.kernel != "blocks":
            out_bsnh = attend_alone(q_bsnh, k_bsnh, v_bsnh, causal=False, kernel=self.kernel)
            return self.o(out_bsnh), own
        q_bsnh = q_bsnh * q_bsnh.shape[-1] ** -0.5
        scores = jnp.einsum("bsnh,bnth->bnst", q_bsnh, own.k, preferred_element_type=jnp.float32)
        if mask_st is not None:
            scores = jnp.where(mask_st, scores, jnp.finfo(jnp.float32).min)
        weights_bnst = jax.nn.softmax(scores, axis=-1).astype(x_bsd.dtype)
        return self.o(jnp.einsum("bnst,bnth->bsnh", weights_bnst, own.v)), own

    def after(
        self, x_brtd: Float[Array, "B R T D"], prefix: KV, seen_brp: Bool[Array, "B R P"]
    ) -> Float[Array, "B R T D"]:
        """R continuations of each prefix, causally; `seen_brp` says which of its P places one of
        them continues."""
        q_brtnh = self.q(x_brtd)
        q_brtnh = q_brtnh * q_brtnh.shape[-1] ** -0.5
        own, t = KV(heads_first(self.k(x_brtd)), heads_first(self.v(x_brtd))), x_brtd.shape[2]
        f32 = jnp.float32
        shared = jnp.einsum("brtnh,bnph->brntp", q_brtnh, prefix.k, preferred_element_type=f32)
        shared = jnp.where(seen_brp[:, :, None, None], shared, jnp.finfo(f32).min)
        scores = jnp.einsum("brtnh,brnsh->brnts", q_brtnh, own.k, preferred_element_type=f32)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, jnp.finfo(f32).min)
        weights = jax.nn.softmax(jnp.concatenate([shared, scores], axis=-1), axis=-1)
        weights = weights.astype(x_brtd.dtype)
        p = prefix.length
        out = jnp.einsum("brntp,bnph->brtnh", weights[..., :p], prefix.v)
        return self.o(out + jnp.einsum("brnts,brnsh->brtnh", weights[..., p:], own.v))


class GatedMLP(nnx.Module):
    """`out(silu(gate(x)) * up(x))`, with biases; gate and up are one matrix."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, f, kw = config.hidden_size, config.intermediate_size, {"rngs": rngs, "dtype": dtype}
        axes, init = ("embed", None, "mlp"), normal(d**-0.5)
        self.gate_up = Linear((d,), (2, f), axes, bias=True, init=init, **kw)
        self.out = Linear((f,), (d,), ("mlp", "embed"), bias=True, init=init, **kw)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        gate, up = jnp.moveaxis(self.gate_up(x), -2, 0)
        return self.out(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(
        self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, attention: str = "blocks"
    ):
        d, eps, kw = config.hidden_size, config.layer_norm_eps, {"rngs": rngs, "dtype": dtype}
        self.attn_norm = LayerNorm(d, eps, **kw)
        self.attn = Attention(config, attention=attention, **kw)
        self.mlp_norm = LayerNorm(d, eps, **kw)
        init = (normal((2 * d) ** -0.5), normal(d**-0.5 * (2 * config.num_hidden_layers) ** -0.5))
        f, act = config.intermediate_size, config.hidden_act
        self.mlp = GatedMLP(config, **kw) if config.gated else MLP(d, f, act, init, **kw)

        def scale() -> nnx.Param | None:
            ones = jax.nn.initializers.ones
            return param(rngs, (d,), ("embed",), ones, dtype) if config.layer_scale else None

        self.attn_scale, self.mlp_scale = scale(), scale()

    def __call__(
        self, x_bsd: Float[Array, "B S D"], mask_st: Bool[Array, "S T"] | None
    ) -> tuple[Float[Array, "B S D"], KV]:
        x_bsd = constrain(x_bsd, "batch")
        attended, kv = self.attn(self.attn_norm(x_bsd), mask_st)
        x_bsd = x_bsd + _scaled(attended, self.attn_scale)
        return x_bsd + _scaled(self.mlp(self.mlp_norm(x_bsd)), self.mlp_scale), kv

    def after(self, x_brtd: Array, prefix: KV, seen_brp: Bool[Array, "B R P"]) -> Array:
        """See `Attention.after`."""
        x_brtd = constrain(x_brtd, "batch")
        attended = self.attn.after(self.attn_norm(x_brtd), prefix, seen_brp)
        x_brtd = x_brtd + _scaled(attended, self.attn_scale)
        return x_brtd + _scaled(self.mlp(self.mlp_norm(x_brtd)), self.mlp_scale)


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)
