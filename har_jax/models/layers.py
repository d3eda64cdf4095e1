"""The layers that the towers and decoders share: parameters with named axes, linears, norms.

A kernel is stored `[in..., out...]`, so that `x @ kernel` needs no transpose; interchange/ turns
Hugging Face's `[out, in]` around. Computation follows the dtype of the activations; norms work in
float32 and return the dtype that came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError, did_you_mean
from har_jax.models.functional import only_shapes
from har_jax.models.kernels import DenseKernel
from har_jax.models.quantised import QuantisedKernel
from har_jax.sharding import LogicalAxes
from har_jax.types import AnyArray, Array, DTypeLike, Float, Int

Initializer = Callable[..., Array]
P = TypeVar("P", bound=nnx.Param)


def normal(stddev: float = 0.02) -> Initializer:
    return jax.nn.initializers.normal(stddev)


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    init: Initializer,
    dtype: DTypeLike = jnp.float32,
    kind: type[P] = nnx.Param,
) -> P:
    """A parameter that knows its logical axes (`har_jax.sharding`); a `DenseKernel` multiplies."""
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not name the {len(shape)} dimensions of {shape}")
    if only_shapes():  # tracing how 7 billion numbers would be drawn takes longer than all the rest
        return kind(jax.ShapeDtypeStruct(shape, dtype), logical_axes=axes)
    return kind(init(_next_key(rngs), shape, dtype), logical_axes=axes)


def _next_key(rngs: nnx.Rngs) -> Array:
    """`rngs.params()`, and quick where only shapes are wanted.

    There flax looks for the sharding of its traced counter, and JAX, to say that it has none, walks
    through all that was traced so far: minutes for a decoder of 32 layers.
    """
    stream = rngs.params
    count = stream.count[...]
    stream.count.set_raw_value(count + 1)
    return jax.random.fold_in(stream.key[...], count)


class Linear(nnx.Module):
    """`y = x @ kernel (+ bias)`; both shapes may have several axes, such as (heads, head_dim).

    With `add_lora`, also `+ scale * (x @ lora_a) @ lora_b` (see `har_jax.models.lora`).
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        axes: LogicalAxes,
        *,
        bias: bool = False,
        init: Initializer | None = None,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.n_in = len(in_shape)
        shape = (*in_shape, *out_shape)
        kernel = param(rngs, shape, axes, init or normal(), dtype, DenseKernel)
        self.kernel: DenseKernel | QuantisedKernel = kernel
        out_axes = axes[len(in_shape) :]
        zeros = jax.nn.initializers.zeros
        self.bias = param(rngs, out_shape, out_axes, zeros, dtype) if bias else None
        self.lora_a: DenseKernel | None = nnx.data(None)
        self.lora_b: DenseKernel | None = nnx.data(None)
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, ...], *, wide: DTypeLike | None = None) -> Array:
        """`x [*batch, in...]` to `[*batch, out...]`; `wide` is the result's dtype where it is not
        that of `x`."""
        y = self.kernel.matmul(x, self.n_in, wide)
        if self.lora_a is not None and self.lora_b is not None:
            low = self.lora_a.matmul(x, self.n_in)
            y = y + self.lora_scale * self.lora_b.matmul(low, 1, wide)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def quantise(self, scheme: str) -> None:
        """Keeps the kernel in 8 or 4 bits (`models/quantised.py`), where that fits its shape."""
        if isinstance(self.kernel, DenseKernel):
            self.kernel = QuantisedKernel.of(self.kernel, scheme, self.n_in) or self.kernel

    def add_lora(
        self, rank: int, scale: float, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Factors of rank `rank`: A uniform in ±1/√in, as PEFT draws it, and B zero."""
        shape, axes = self.kernel.shape, self.kernel.logical_axes
        n = self.n_in
        uniform = jax.nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=tuple(range(n)), out_axis=n
        )
        zeros, kind = jax.nn.initializers.zeros, DenseKernel
        self.lora_a = param(rngs, (*shape[:n], rank), (*axes[:n], "lora"), uniform, dtype, kind)
        self.lora_b = param(rngs, (rank, *shape[n:]), ("lora", *axes[n:]), zeros, dtype, kind)
        self.lora_scale = scale


def read_from_stack(layers: Sequence[nnx.Module], stacked: nnx.Module) -> None:
    """Has `layers`, which were taken out of a stack, read their quantised kernels in the stack."""
    kernels = {
        path: linear.kernel
        for path, linear in nnx.iter_modules(stacked)
        if isinstance(linear, Linear) and isinstance(linear.kernel, QuantisedKernel)
    }
    for i, layer in enumerate(layers):
        for path, linear in nnx.iter_modules(layer):
            if isinstance(linear, Linear) and path in kernels:
                linear.kernel = kernels[path].of_layer(i)


class Embedding(nnx.Module):
    """A table `[V, D]`: rows for ids, and `attend` for logits of tied embeddings."""

    def __init__(
        self,
        size: int,
        features: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.embedding = param(rngs, (size, features), ("vocab", "embed"), normal(), dtype)

    def __call__(
        self, ids: Int[AnyArray, "*batch"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*batch D"]:
        return jnp.take(self.embedding[...], ids, axis=0).astype(dtype)

    def attend(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits in float32."""
        table = self.embedding[...].astype(x.dtype)
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


class RMSNorm(nnx.Module):
    """Root-mean-square norm without mean (Zhang & Sennrich 2019), as Mistral uses it."""

    def __init__(
        self,
        features: int,
        eps: float,
        *,
        axis: str = "embed",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        """`axis` is the logical one of the features."""
        self.eps = eps
        self.scale = param(rngs, (features,), (axis,), jax.nn.initializers.ones, dtype)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    def __init__(
        self, features: int, eps: float, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.eps = eps
        self.scale = param(rngs, (features,), ("embed",), jax.nn.initializers.ones, dtype)
        self.bias = param(rngs, (features,), ("embed",), jax.nn.initializers.zeros, dtype)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=-1, keepdims=True)
        var = jnp.mean((x32 - mean) ** 2, axis=-1, keepdims=True)
        y = (x32 - mean) * jax.lax.rsqrt(var + self.eps)
        y = y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # of OpenAI's CLIP weights
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
"""Activations by the names that Hugging Face configs give them."""


def check_sizes(what: str, config: Any, width: str, heads: str, activation: str) -> None:
    """`UserError` where heads do not divide the width, or an activation has no such name.

    Args:
      what: whose configuration it is.
      width, heads, activation: the names of the settings.
    """
    size, n, act = getattr(config, width), getattr(config, heads), getattr(config, activation)
    if size % n:
        raise UserError(
            f"{what} config: {width} {size} is not a multiple of {heads} {n}; correct the "
            "config.json"
        )
    if act not in ACTIVATIONS:
        raise UserError(
            f"{what} config: {activation} {act!r} is unknown{did_you_mean(act, ACTIVATIONS)}; "
            f"known: {', '.join(ACTIVATIONS)}"
        )


class MLP(nnx.Module):
    """`down(act(up(x)))`, with biases: CLIP's and GPT-2's."""

    def __init__(
        self,
        d: int,
        f: int,
        activation: str,
        init: tuple[Initializer, Initializer],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        make: dict[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        self.up = Linear((d,), (f,), ("embed", "mlp"), init=init[0], **make)
        self.down = Linear((f,), (d,), ("mlp", "embed"), init=init[1], **make)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


def output_layer(tied: bool, d: int, v: int, rngs: nnx.Rngs, dtype: DTypeLike) -> Linear | None:
    """From hidden states to logits; None where the embeddings do that too (`logits`)."""
    return None if tied else Linear((d,), (v,), ("embed", "vocab"), rngs=rngs, dtype=dtype)


def logits(
    hidden: Float[Array, "*batch D"], embedding: Embedding, output: Linear | None
) -> Float[Array, "*batch V"]:
    """Next-token logits in float32."""
    return embedding.attend(hidden) if output is None else output(hidden, wide=jnp.float32)
