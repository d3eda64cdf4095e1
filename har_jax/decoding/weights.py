"""The weights that a decode loop reads: made once, before the loop, and not for every token.

`gathered`: what `fsdp` splits is brought together in the activations' dtype, half of the bytes in
bfloat16; the fastest, and with `tensor` of 1 a whole decoder on every device. `in_place`: the
layers' matrices stay split over `fsdp` and `tensor` as training has them, and for each product the
rows of the batch are brought together instead, which are small while one token is written at a
time; embeddings and output layer are gathered, for logits are not small. Training's
rollout, validation, evaluation and captioning all come through here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from har_jax.config import WeightsForDecoding
from har_jax.hardware import device_memory
from har_jax.models import lora, quantised
from har_jax.models.captioner import Captioner
from har_jax.models.functional import split
from har_jax.models.kernels import IN_PLACE
from har_jax.sharding import ROLLOUT_RULES, RULES, LogicalAxes, Rules, constrain_param, sharding_of
from har_jax.types import Array

log = logging.getLogger(__name__)

_LAYERS = "lm.layers."

SHARE = 0.4
"""Of a device's memory, what gathered weights may take: caches and logits need their place too."""


def for_decoding(captioner: Captioner, rules: Rules = ROLLOUT_RULES) -> Captioner:
    """The captioner as a decode loop is to read it; call it inside `jax.jit`, before the loop.

    1. The decoder's layers are taken apart: a loop that reads slices of a stack copies them. Only
       quantised kernels stay in their stack, which all layers then share, and are placed once.
    2. Its matrices are cast to the activations' dtype, as each product would cast them again;
       vectors of norms stay, which norms read in float32.
    3. They are placed on the mesh in context, if there is one, by `rules`, or left in place, as
       `captioner.config.decode_weights` says ("auto": see `resolve`); single layers, so that no
       whole stack is gathered.
    """
    structure, params = split(captioner.for_decoding())
    dtype, axes = captioner.compute_dtype, structure.logical_axes
    stay = captioner.config.decode_weights == "in_place"
    in_place: set[str] = set()
    placed: dict[int, tuple[Array, Array]] = {}  # by `id`, which is a value's while it is kept
    for name, value in params.items():
        if name.startswith("lm."):
            part = quantised.is_part(name)
            matrix = value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.floating)
            value = value.astype(dtype) if matrix and not part else value
            of_layer = name.startswith(_LAYERS) and not lora.is_factor(name)
            if stay and of_layer and (matrix or part):
                in_place.add(name)
            place = RULES if name in in_place else rules
            if id(value) not in placed:
                placed[id(value)] = value, constrain_param(value, axes[name], place, name)
            params[name] = placed[id(value)][1]
    return structure.marked(in_place, **{IN_PLACE: True}).merge(params)


def gathered_bytes(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, LogicalAxes],
    dtype: Any,
    mesh: Mesh,
    rules: Rules = ROLLOUT_RULES,
) -> int:
    """Of the decoder's parameters on each device, by `rules`, in the activations' dtype."""
    total = 0
    for name, x in shapes.items():
        if name.startswith("lm."):
            part = sharding_of(x.shape, axes[name], mesh, rules, name).shard_shape(x.shape)
            kept = x.dtype if quantised.is_part(name) else jnp.dtype(dtype)
            total += math.prod(part) * kept.itemsize
    return total


def resolve(
    wanted: WeightsForDecoding,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, LogicalAxes],
    dtype: Any,
    mesh: Mesh,
) -> WeightsForDecoding:
    """`auto` as one of the others: gathered where that takes no more than `SHARE` of a device."""
    memory = device_memory(mesh.devices.flat[0])
    if wanted != "auto" or memory is None or mesh.shape["fsdp"] == 1:
        return "gathered" if wanted == "auto" else wanted
    needed = gathered_bytes(shapes, axes, dtype, mesh)
    return "gathered" if needed <= SHARE * memory else "in_place"
