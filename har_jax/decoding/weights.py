"""The weights that a decode loop reads: made once, before the loop, and not for every token.

What `fsdp` splits is gathered in the activations' dtype, half of the bytes in bfloat16. Training's
rollout, validation, evaluation and captioning all come through here.
"""

from __future__ import annotations

import jax.numpy as jnp

from har_jax.models.captioner import Captioner
from har_jax.models.functional import split
from har_jax.sharding import ROLLOUT_RULES, Rules, constrain_param


def for_decoding(captioner: Captioner, rules: Rules = ROLLOUT_RULES) -> Captioner:
    """The captioner as a decode loop is to read it; call it inside `jax.jit`, before the loop.

    1. The decoder's layers are taken apart: a loop that reads slices of a stack copies them.
    2. Its matrices are cast to the activations' dtype, as each product would cast them again;
       vectors of norms stay, which norms read in float32.
    3. They are placed by `rules` on the mesh in context, if there is one: of single layers, so that
       no whole stack is gathered.
    """
    structure, params = split(captioner.for_decoding())
    dtype, axes = captioner.compute_dtype, structure.logical_axes
    for name, value in params.items():
        if name.startswith("lm."):
            matrix = value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.floating)
            value = value.astype(dtype) if matrix else value
            params[name] = constrain_param(value, axes[name], rules, name)
    return structure.merge(params)
