"""A loss and its gradient, of a whole batch at once or of one microbatch after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from har_jax.figures import Loss, LossFn, of_parts, parted
from har_jax.models.functional import Params
from har_jax.sharding import constrain
from har_jax.types import Array, PyTree

Gradient = Callable[[Params, Params, Mapping[str, Array], Array], tuple[Loss, Params]]
"""(trained, frozen, batch, key) → the loss, and the gradient of its total / weight."""


def make_gradient(loss_fn: LossFn, microbatches: int = 1) -> Gradient:
    """The loss and gradient of a step; call it inside `jax.jit`.

    Microbatches are accumulated by a `lax.scan`, in the dtype of the parameters: memory is that of
    one. As totals and weights are added before they are divided, the sum is the gradient of the
    whole batch, whatever number of tokens each part has.
    """
    loss = parted(loss_fn)

    def whole(trained: Params, frozen: Params, batch: Mapping[str, Array], key: Array) -> tuple:
        def loss_of(trained: Params) -> tuple[Array, Loss]:
            found = loss({**frozen, **trained}, batch, key)
            return found.total / _weight(found), found

        (_, found), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        return found, grads

    def in_parts(trained: Params, frozen: Params, batch: Mapping[str, Array], key: Array) -> tuple:
        # 1. What is made once, of the whole batch: a rollout, its rewards.
        prepared = loss.prepare({**frozen, **trained}, batch, key)

        def total_of(trained: Params, part: Mapping[str, Any]) -> tuple[Array, Loss]:
            found = loss.part({**frozen, **trained}, part, key)
            return found.total, found

        # 2. The gradients of the microbatches' totals, added one to the other.
        def add(grads: Params, part: Mapping[str, Any]) -> tuple[Params, Loss]:
            (_, found), more = jax.value_and_grad(total_of, has_aux=True)(trained, part)
            return jax.tree.map(jnp.add, grads, more), found

        zeros = jax.tree.map(jnp.zeros_like, trained)
        grads, parts = jax.lax.scan(add, zeros, _split(prepared, microbatches))
        # 3. Divided once by the weight of all.
        arrays = {name: _join(x) for name, x in parts.arrays.items()}
        total, weight = jnp.sum(parts.total), jnp.sum(parts.weight)
        found = Loss(total, weight, of_parts(parts.figures), arrays)
        scale = 1 / _weight(found)
        return found, jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

    return whole if microbatches == 1 else in_parts


def _weight(loss: Loss) -> Array:
    """Never 0: a batch of padded rows has a loss of 0."""
    return loss.weight + (loss.weight == 0)


def _split(prepared: PyTree, n: int) -> PyTree:
    """`[B, ...]` as `[n, B/n, ...]`. Every n-th image: those of a microbatch are spread over the
    devices as those of the batch are, so none has to move."""

    def one(x: Array) -> Array:
        parts = jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
        return constrain(parts, None, "batch")

    return jax.tree.map(one, prepared)


def _join(x: Array) -> Array:
    """The way back, of `[n, B/n, ...]`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
