"""From vision features to a soft visual prefix: p = W_proj(v), a two-layer perceptron.

`patch` maps every vision token to one prefix token (LLaVA's connector, so such captioners can be
exported as `LlavaForConditionalGeneration`); `pooled` maps the image's single embedding to
`prefix_tokens` tokens (ClipCap's).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.models.layers import Linear
from har_jax.types import Array, DTypeLike, Float

ProjectorKind = Literal["patch", "pooled"]


class Projector(nnx.Module):
    def __init__(
        self,
        kind: ProjectorKind,
        features: int,
        width: int,
        *,
        hidden: int = 0,
        prefix_tokens: int = 1,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        """`features` is Dv, `width` the decoder's D; `hidden` 0 stands for `width`."""
        self.kind = kind
        self.width = width
        hidden = hidden or width
        tokens = prefix_tokens if kind == "pooled" else 1
        init = jax.nn.initializers.lecun_normal()
        make: dict[str, Any] = dict(bias=True, init=init, rngs=rngs, dtype=dtype)
        self.linear_1 = Linear((features,), (hidden,), ("embed", "mlp"), **make)
        self.linear_2 = Linear((hidden,), (tokens * width,), ("mlp", "embed"), **make)

    def __call__(self, features_bsv: Float[Array, "B S Dv"]) -> Float[Array, "B P D"]:
        """P is S (`patch`) or `prefix_tokens` (`pooled`, where S is 1)."""
        hidden = jax.nn.gelu(self.linear_1(features_bsv), approximate=False)
        projected = self.linear_2(hidden)
        return projected.reshape(projected.shape[0], -1, self.width)
