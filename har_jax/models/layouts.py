"""How the decoder's parameters may lie, and the way from one layout to another.

The *canonical* layout has one parameter for each weight of a Hugging Face file:
`layers.0.attn.q.kernel`. Others hold the same numbers otherwise:

    stacked   `layers.attn.q.kernel`       [L, ...]       all layers, for `lax.scan`
    fused     `layers.0.attn.qkv.kernel`   [D,K,G+2,H]    of each KV head: G queries, key, value
              `layers.0.mlp.gate_up.kernel`  [D,2,F]
    both      `layers.attn.qkv.kernel`     [L,D,K,G+2,H]

Names tell the layout, so these functions need flat dictionaries of parameters and nothing else.
Factors of adapters (`lora_a`, `lora_b`) follow their kernel; those of a fused kernel share one A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from har_jax.errors import UserError
from har_jax.models.functional import Params
from har_jax.types import Array

# A fused kernel's parts stand one after the other along its last axis but one.
FUSED: Mapping[str, Mapping[str, slice]] = {
    "attn.qkv": {
        "attn.q": slice(None, -2),
        "attn.k": slice(-2, -1),
        "attn.v": slice(-1, None),
    },
    "mlp.gate_up": {"mlp.gate": slice(0, 1), "mlp.up": slice(1, 2)},
}
_STACKED = re.compile(r"((?:.*\.)?layers)\.([^\d.].*)")
_FUSED = re.compile(r"(.*\.)(attn\.qkv|mlp\.gate_up)\.(kernel|lora_a|lora_b)")


class Piece(NamedTuple):
    """A canonical parameter inside one of another layout: `whole[index].reshape(shape)`."""

    name: str
    index: tuple[slice, ...]  # one for every axis of the whole, with start and stop
    shape: tuple[int, ...]


def pieces(name: str, shape: Sequence[int]) -> list[Piece]:
    """The canonical parameters that the parameter `name` of this shape is made of."""
    stacked = _STACKED.fullmatch(name)
    if stacked:
        before, after = stacked.groups()
        return [
            Piece(piece.name, (slice(i, i + 1), *piece.index), piece.shape)
            for i in range(shape[0])
            for piece in pieces(f"{before}.{i}.{after}", shape[1:])
        ]
    fused = _FUSED.fullmatch(name)
    whole = tuple(slice(0, n) for n in shape)
    if not fused:
        return [Piece(name, whole, tuple(shape))]
    before, joined, leaf = fused.groups()
    if leaf == "lora_a":
        return [Piece(f"{before}{p}.{leaf}", whole, tuple(shape)) for p in FUSED[joined]]
    found = []
    for part, where in FUSED[joined].items():
        start, stop, _ = where.indices(shape[-2])
        region = (*shape[:-2], stop - start, shape[-1])
        index = (*whole[:-2], slice(start, stop), whole[-1])
        found.append(Piece(f"{before}{part}.{leaf}", index, _without_group(joined, region)))
    return found


def _without_group(joined: str, region: tuple[int, ...]) -> tuple[int, ...]:
    """A part's own shape: heads `[K,G,H]` as `[K·G,H]`; `[1,F]` as `[F]`."""
    *front, group, last = region
    if joined == "attn.qkv":
        *front, heads = front
        return (*front, heads * group, last)
    return (*front, last)


def convert(params: Mapping[str, Array], wanted: Mapping[str, Any]) -> Params:
    """The same numbers under the names and shapes of `wanted`, whatever layout either has.

    Pure; under `jax.jit` with `out_shardings` it moves shards and nothing more.

    Args:
      params: of a module or a part of it, such as what a checkpoint holds.
      wanted: what has a `shape`, by the other layout's names.

    Raises:
      UserError: separate adapters of q, k and v (or gate and up) cannot become those of a fused
        kernel, which has one A for all of them.
      KeyError: `params` lacks something.
    """
    sources = {
        piece.name: (name, piece) for name, x in params.items() for piece in pieces(name, x.shape)
    }

    def canonical(name: str) -> Array:
        source, piece = sources[name]
        return params[source][piece.index].reshape(piece.shape)

    def made(name: str, shape: tuple[int, ...]) -> Array:
        if name in params:
            return params[name]
        stacked = _STACKED.fullmatch(name)
        if stacked:
            before, after = stacked.groups()
            return jnp.stack([made(f"{before}.{i}.{after}", shape[1:]) for i in range(shape[0])])
        fused = _FUSED.fullmatch(name)
        if not fused:
            return canonical(name)
        parts = pieces(name, shape)
        if fused[3] == "lora_a":
            if len({(sources[p.name][0], str(sources[p.name][1].index)) for p in parts}) > 1:
                raise UserError(
                    f"adapters of {', '.join(p.name.removesuffix('.lora_a') for p in parts)} "
                    f"cannot become one of {name.removesuffix('.lora_a')}: they have a factor A "
                    "each, and it has one; keep model.fused as it was when they were trained"
                )
            return canonical(parts[0].name)
        regions = [
            canonical(p.name).reshape([index.stop - index.start for index in p.index])
            for p in parts
        ]
        return jnp.concatenate(regions, axis=-2)

    return {name: made(name, tuple(like.shape)) for name, like in wanted.items()}


def is_stacked(name: str) -> bool:
    """Whether a parameter holds those of all layers, along its first axis."""
    return _STACKED.fullmatch(name) is not None
