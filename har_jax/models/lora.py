"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank update beside a kernel that stays as it is.

    y = x W + (alpha / r) (x A) B,    A [in..., r] random, B [r, out...] zero

`attach` gives the factors to every `layers.Linear` whose name matches a pattern. They are
parameters like others, `<linear>.lora_a` and `<linear>.lora_b`: training, sharding and checkpoints
need to know nothing but these names. `merged` adds the products to the kernels.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from har_jax.config import LoraConfig
from har_jax.errors import UserError
from har_jax.models.functional import Params
from har_jax.models.layers import Linear
from har_jax.types import Array, DTypeLike

FACTORS = (".lora_a", ".lora_b")


def is_factor(name: str) -> bool:
    """Whether a parameter of the flat dictionary is one of an adapter's two factors."""
    return name.endswith(FACTORS)


def linears(module: nnx.Module, prefix: str = "") -> dict[str, Linear]:
    """Every `Linear` in a module, by its dotted path."""
    start = [prefix] if prefix else []
    return {
        ".".join([*start, *map(str, path)]): part
        for path, part in nnx.iter_modules(module)
        if isinstance(part, Linear)
    }


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern describes a linear's name, or the end of it that follows a dot."""
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def attach(
    module: nnx.Module,
    config: LoraConfig,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    prefix: str = "",
) -> list[str]:
    """Gives factors to the linears in `module` that `config.targets` matches and that have none.

    Args:
      prefix: what the names of the module's linears begin with, as part of a larger one.
      dtype: of the factors.

    Returns the names of the linears that got factors, in order; `check_targets` tells a user whose
    pattern matched none.
    """
    adapted = []
    for name, linear in sorted(linears(module, prefix).items()):
        if linear.lora_a is None and matches(config.targets, name):
            linear.add_lora(config.rank, config.alpha / config.rank, rngs=rngs, dtype=dtype)
            adapted.append(name)
    return adapted


def check_targets(module: nnx.Module, config: LoraConfig) -> None:
    """`UserError` with the names that there are, if no linear in `module` has factors."""
    found = linears(module)
    if any(linear.lora_a is not None for linear in found.values()):
        return
    short = dict.fromkeys(re.sub(r"^layers\.(\d+\.)?", "", name) for name in sorted(found))
    raise UserError(
        f"config.model.lora.targets={config.targets!r} matches no linear layer of the decoder; "
        f"it is a regular expression for the end of a name, such as 'attn.(q|v)'; the names are "
        f"{', '.join(short)}"
    )


def merged(params: Mapping[str, Array], scale: float) -> Params:
    """Parameters without factors: each adapted kernel becomes W + scale·A·B, where it lies.

    The sum is made in float32 and rounded once to the kernel's dtype. Kernels that are stacked over
    layers (one axis more, in front of kernel and factors) are merged layer by layer.

    Args:
      params: a flat dictionary, all of a model's or a part of it.
      scale: alpha / r.
    """
    plain = {name: value for name, value in params.items() if not is_factor(name)}
    for name, a in params.items():
        if name.endswith(FACTORS[0]):
            linear = name.removesuffix(FACTORS[0])
            kernel, b = plain[f"{linear}.kernel"], params[linear + FACTORS[1]]
            there = isinstance(kernel, jax.Array) and not isinstance(kernel, Tracer)
            merge = _merger(kernel.sharding) if there else _merge
            plain[f"{linear}.kernel"] = merge(kernel, a, b, float(scale))
    return plain


@functools.lru_cache(maxsize=64)
def _merger(sharding: jax.sharding.Sharding) -> Callable[..., Array]:
    return jax.jit(_merge, static_argnums=3, out_shardings=sharding)


def _merge(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    def one(kernel: Array, a: Array, b: Array) -> Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        update = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    stacked = kernel.ndim == a.ndim + b.ndim - 3  # each of the three has the axis of layers
    return (jax.vmap(one) if stacked else one)(kernel, a, b)
