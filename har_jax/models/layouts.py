"""How a decoder's parameters may lie, and the way from one layout to another.

The *canonical* layout has one parameter for each weight of a Hugging Face file:
`layers.0.attn.q.kernel`. *Stacked*, `layers.attn.q.kernel` `[L, ...]` holds those of all layers,
for `lax.scan`. Names tell the layout, so these functions need flat dictionaries of parameters and
nothing else. Factors of adapters (`lora_a`, `lora_b`) follow their kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from har_jax.types import AnyArray

_STACKED = re.compile(r"((?:.*\.)?layers)\.([^\d.].*)")
_LAYER = re.compile(r"((?:.*\.)?layers)\.(\d+)\.(.*)")


def is_stacked(name: str) -> bool:
    """Whether a parameter holds those of all layers, along its first axis."""
    return _STACKED.fullmatch(name) is not None


def canonical_names(name: str, shape: Sequence[int]) -> list[str]:
    """The canonical parameters that one of this name and shape is made of, layer by layer."""
    stacked = _STACKED.fullmatch(name)
    if not stacked:
        return [name]
    return [f"{stacked[1]}.{i}.{stacked[2]}" for i in range(shape[0])]


def convert(params: Mapping[str, AnyArray], wanted: Mapping[str, Any]) -> dict[str, AnyArray]:
    """The same numbers under the names and shapes of `wanted`, whatever layout either has.

    Pure; under `jax.jit` with `out_shardings` it moves shards and nothing more.

    Args:
      params: of a module or a part of it, such as what a checkpoint holds.
      wanted: what has a `shape`, by the other layout's names.

    Raises:
      KeyError: `params` lacks something.
    """

    def made(name: str, shape: Sequence[int]) -> AnyArray:
        if name in params:
            return params[name]
        if is_stacked(name):
            return jnp.stack([made(each, shape[1:]) for each in canonical_names(name, shape)])
        before, number, after = _LAYER.fullmatch(name).groups()  # type: ignore[union-attr]
        return params[f"{before}.{after}"][int(number)]

    return {name: made(name, like.shape) for name, like in wanted.items()}
