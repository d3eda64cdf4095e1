"""Mistral as a captioner's decoder: one prefix, R suffixes of it.

The usual decoder attends over one sequence. Here a batch holds B prefixes of P tokens, and R
captions of T tokens for each; the keys and values of a prefix are computed once (`prefill`) and
shared by its captions, whether these are known (`extend`, teacher forcing) or being written
(`step`, one token).

Architecture as in Jiang et al. 2023 (arXiv 2310.06825) and Hugging Face's `MistralForCausalLM`:
pre-norm blocks, grouped-query attention, rotary positions (half-split layout), SwiGLU, optional
sliding window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.layers import ACTIVATIONS, Embedding, Linear, RMSNorm
from har_jax.sharding import constrain
from har_jax.types import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class MistralConfig:
    """Hyper-parameters under Hugging Face's names (`config.json`)."""

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 14_336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    sliding_window: int | None = 4096
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"Mistral config: num_attention_heads {self.num_attention_heads} is not a multiple "
                f"of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"Mistral config: hidden_act {self.hidden_act!r} is unknown; "
                f"known: {', '.join(sorted(ACTIVATIONS))}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> MistralConfig:
        """From a `config.json` (transformers 4 and 5 write rope_theta differently)."""
        model_type = config.get("model_type")
        if model_type != "mistral":
            raise UserError(f"this is a {model_type!r} config where a 'mistral' one is needed")
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in config.items() if k in known}
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise UserError(
                f"Mistral config: rope_type {rope['rope_type']!r} is not supported; only 'default'"
            )
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        heads = values.get("num_attention_heads", cls.num_attention_heads)
        if values.get("head_dim") is None:
            values["head_dim"] = values.get("hidden_size", cls.hidden_size) // heads
        if values.get("num_key_value_heads") is None:
            values["num_key_value_heads"] = heads
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers loads."""
        values = dataclasses.asdict(self)
        theta = values["rope_theta"]
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            **values,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }


class KV(NamedTuple):
    """Rotated keys and values of one layer: `[B,P,K,H]` of prefixes, `[B,R,T,K,H]` of captions."""

    k: Array
    v: Array


Cache = tuple[KV, ...]
"""One `KV` per layer. Kept apart per layer: a stacked cache is copied by every step of a loop."""


def rotary(
    x: Float[Array, "*batch T heads H"], positions: Int[Array, " T"], theta: float
) -> Float[Array, "*batch T heads H"]:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies  # [T,1,H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    q_brtnh: Float[Array, "B R T N H"],
    positions_t: Int[Array, " T"],
    shared: KV | None,
    own: KV,
    window: int | None,
) -> Float[Array, "B R T N H"]:
    """Softmax over the shared prefix (positions 0..P-1) and the caption's own keys (P..P+S-1).

    A key is seen when it is not in the future and, with a sliding window w, fewer than w positions
    back; slots of a cache that are not yet written lie in the future, so one rule masks both. The
    scores of the two parts are made apart and normalised together: no key of the prefix is copied
    for its R captions.
    """
    b, r, t, n, h = q_brtnh.shape
    n_kv = own.k.shape[-2]
    q = (q_brtnh * h**-0.5).reshape(b, r, t, n_kv, n // n_kv, h)
    prefix_length = 0 if shared is None else shared.k.shape[1]
    own_positions = prefix_length + jnp.arange(own.k.shape[2])

    def visible(keys: Int[Array, " S"]) -> Bool[Array, "T S"]:
        distance = positions_t[:, None] - keys[None, :]
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)

    def masked(scores: Float[Array, "B K G R T S"], keys: Int[Array, " S"]) -> Array:
        return jnp.where(visible(keys), scores, jnp.finfo(jnp.float32).min)

    f32 = jnp.float32
    s_own = jnp.einsum("brtkgh,brskh->bkgrts", q, own.k, preferred_element_type=f32)
    s_own = masked(s_own, own_positions)
    top = jnp.max(s_own, axis=-1, keepdims=True)
    if shared is not None:
        s_shared = jnp.einsum("brtkgh,bpkh->bkgrtp", q, shared.k, preferred_element_type=f32)
        s_shared = masked(s_shared, jnp.arange(prefix_length))
        top = jnp.maximum(top, jnp.max(s_shared, axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    e_own = jnp.exp(s_own - top)
    total = jnp.sum(e_own, axis=-1)
    dtype = q.dtype
    out = jnp.einsum("bkgrts,brskh->brtkgh", e_own.astype(dtype), own.v, preferred_element_type=f32)
    if shared is not None:
        e_shared = jnp.exp(s_shared - top)
        total += jnp.sum(e_shared, axis=-1)
        out += jnp.einsum(
            "bkgrtp,bpkh->brtkgh", e_shared.astype(dtype), shared.v, preferred_element_type=f32
        )
    total_brtkg = jnp.transpose(total, (0, 3, 4, 1, 2))
    return (out / total_brtkg[..., None]).astype(dtype).reshape(b, r, t, n, h)


class Attention(nnx.Module):
    def __init__(self, config: MistralConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        d, h = config.hidden_size, config.head_dim
        n, k = config.num_attention_heads, config.num_key_value_heads
        kv_axes = ("embed", "kv_heads", "head_dim")
        self.q = Linear((d,), (n, h), ("embed", "heads", "head_dim"), rngs=rngs, dtype=dtype)
        self.k = Linear((d,), (k, h), kv_axes, rngs=rngs, dtype=dtype)
        self.v = Linear((d,), (k, h), kv_axes, rngs=rngs, dtype=dtype)
        self.o = Linear((n, h), (d,), ("heads", "head_dim", "embed"), rngs=rngs, dtype=dtype)
        self.theta, self.window = config.rope_theta, config.sliding_window

    def __call__(
        self,
        x_brtd: Float[Array, "B R T D"],
        positions_t: Int[Array, " T"],
        shared: KV | None,
        written: KV | None,
    ) -> tuple[Float[Array, "B R T D"], KV]:
        q = rotary(self.q(x_brtd), positions_t, self.theta)
        own = KV(rotary(self.k(x_brtd), positions_t, self.theta), self.v(x_brtd))
        if written is not None:  # one token: write it into its slot of the caption's cache
            slot = positions_t[0] - (0 if shared is None else shared.k.shape[1])
            own = KV(
                *(
                    jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)
                    for old, new in zip(written, own, strict=True)
                )
            )
        return self.o(attend(q, positions_t, shared, own, self.window)), own


class MLP(nnx.Module):
    """SwiGLU: `down(act(gate(x)) * up(x))`."""

    def __init__(self, config: MistralConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = Linear((d,), (f,), ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.up = Linear((d,), (f,), ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = Linear((f,), (d,), ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.activation = config.hidden_act

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: MistralConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        d, eps = config.hidden_size, config.rms_norm_eps
        self.attn_norm = RMSNorm(d, eps, rngs=rngs, dtype=dtype)
        self.attn = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(d, eps, rngs=rngs, dtype=dtype)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_brtd: Array, positions_t: Array, shared: KV | None, written: KV | None
    ) -> tuple[Array, KV]:
        attended, own = self.attn(self.attn_norm(x_brtd), positions_t, shared, written)
        x_brtd = constrain(x_brtd + attended, "batch")
        x_brtd = constrain(x_brtd + self.mlp(self.mlp_norm(x_brtd)), "batch")
        return x_brtd, own


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a backward pass keeps of a block: everything, only its input, or its matrix products."""


class Mistral(nnx.Module):
    """The decoder. `dtype` is that of the parameters; activations follow what `embed` is given."""

    def __init__(
        self,
        config: MistralConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
    ):
        self.config = config
        self.remat = remat
        d, v = config.hidden_size, config.vocab_size
        self.embed_tokens = Embedding(v, d, rngs=rngs, dtype=dtype)
        self.layers = nnx.List(
            [Block(config, rngs=rngs, dtype=dtype) for _ in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(d, config.rms_norm_eps, rngs=rngs, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear((d,), (v,), ("embed", "vocab"), rngs=rngs, dtype=dtype)
        )

    def embed(
        self, tokens: Int[Array, "*batch"], dtype: jnp.dtype = jnp.float32
    ) -> Float[Array, "*batch D"]:
        return self.embed_tokens(tokens, dtype)

    def prefill(self, x_bpd: Float[Array, "B P D"]) -> tuple[Float[Array, "B P D"], Cache]:
        """A whole sequence at positions 0..P-1, causally: final hidden states and keys/values."""
        hidden, own = self._run(x_bpd[:, None], jnp.arange(x_bpd.shape[1]), None, None)
        return hidden[:, 0], tuple(KV(k[:, 0], v[:, 0]) for k, v in own)

    def extend(self, x_brtd: Float[Array, "B R T D"], prefix: Cache) -> Float[Array, "B R T D"]:
        """R known captions after each prefix, at positions P..P+T-1: final hidden states."""
        start = prefix[0].k.shape[1]
        hidden, _ = self._run(x_brtd, start + jnp.arange(x_brtd.shape[2]), prefix, None)
        return hidden

    def step(
        self,
        x_brd: Float[Array, "B R D"],
        prefix: Cache,
        written: Cache,
        t: Int[Array, ""],
    ) -> tuple[Float[Array, "B R D"], Cache]:
        """The t-th token of each caption (from 0): its hidden state, and the cache with it."""
        start = prefix[0].k.shape[1]
        hidden, written = self._run(x_brd[:, :, None], (start + t)[None], prefix, written)
        return hidden[:, :, 0], written

    def empty_cache(self, b: int, r: int, t: int, dtype: jnp.dtype = jnp.float32) -> Cache:
        """Room for the keys and values of T tokens of `[B,R]` captions."""
        shape = (b, r, t, self.config.num_key_value_heads, self.config.head_dim)

        def zeros() -> Array:
            return constrain(jnp.zeros(shape, dtype), "batch", None, None, "heads")

        return tuple(KV(zeros(), zeros()) for _ in range(self.config.num_hidden_layers))

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32."""
        if self.lm_head is None:
            return self.embed_tokens.attend(hidden)
        kernel = self.lm_head.kernel[...].astype(hidden.dtype)
        return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)

    def _run(
        self, x_brtd: Array, positions_t: Array, shared: Cache | None, written: Cache | None
    ) -> tuple[Array, Cache]:
        own = []
        x_brtd = constrain(x_brtd, "batch")
        for i, layer in enumerate(self.layers):
            call = layer
            if self.remat != "none":
                call = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat])
            x_brtd, kv = call(
                x_brtd,
                positions_t,
                None if shared is None else shared[i],
                None if written is None else written[i],
            )
            own.append(kv)
        return self.norm(x_brtd), tuple(own)
