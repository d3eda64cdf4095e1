"""One jitted training step, the same for every stage: loss, gradient, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from har_jax.models.functional import Params
from har_jax.sharding import replicated
from har_jax.types import Array, PyTree

LossFn = Callable[[Params, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
    """What a step changes. Frozen parameters are no part of it, nor of a checkpoint."""

    step: Array  # int32 []: updates done
    params: Params  # the trained ones
    optimizer: PyTree
    lr_scale: Array  # float32 []: of the learning rate; 1 unless guards rolled the run back


class StateShardings(NamedTuple):
    """Where each part of a `TrainState` lives."""

    step: NamedSharding
    params: dict[str, NamedSharding]
    optimizer: PyTree
    lr_scale: NamedSharding


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """`step(state, frozen, batch) -> (state, logs)`, and where the state lives."""

    function: Callable[..., tuple[TrainState, dict[str, Array]]]
    optimizer: optax.GradientTransformation
    shardings: StateShardings

    def __call__(
        self, state: TrainState, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
        return self.function(state, frozen, batch)

    def start(self, params: Params) -> TrainState:
        """The state before the first step; optimizer moments are born in their shards."""
        init = jax.jit(self.optimizer.init, out_shardings=self.shardings.optimizer)
        return self.state(0, params, init(params))

    def state(
        self, step: int, params: Params, optimizer: PyTree, lr_scale: float = 1
    ) -> TrainState:
        """A state from its parts."""
        return TrainState(
            jax.device_put(np.int32(step), self.shardings.step),
            params,
            optimizer,
            jax.device_put(np.float32(lr_scale), self.shardings.lr_scale),
        )

    @property
    def compilations(self) -> int:
        """How often XLA compiled the step; more than one means that some shape changes."""
        return self.function._cache_size()  # type: ignore[attr-defined]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
    seed: int,
) -> TrainStep:
    """Compiles `loss_fn` into a step over `params` (arrays or shapes of the trained ones).

    Everything random in step n comes from `fold_in(key(seed), n)`, so a resumed run draws what an
    unbroken one would have drawn. The state is donated.
    """
    shardings = StateShardings(
        replicated(mesh),
        dict(param_shardings),
        optimizer_shardings(optimizer, params, param_shardings, mesh),
        replicated(mesh),
    )

    def step(
        state: TrainState, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(trained: Params) -> tuple[Array, dict[str, Array]]:
            return loss_fn({**frozen, **trained}, batch, key)

        (loss, logs), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        updates = jax.tree.map(lambda u: u * state.lr_scale.astype(u.dtype), updates)
        params = cast(Params, optax.apply_updates(state.params, updates))
        logs = {"loss": loss, **logs, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, optimizer_state, state.lr_scale), logs

    out = TrainState(*cast(Any, shardings))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(out, None))
    return TrainStep(jitted, optimizer, shardings)


def optimizer_shardings(
    optimizer: optax.GradientTransformation,
    params: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> PyTree:
    """Moments live where their parameter lives; counts and factored statistics are replicated."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(params))

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = str(getattr(path[-1], "key", "")) if path else ""
        if name in param_shardings and leaf.shape == shapes[name].shape:
            return param_shardings[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(optimizer.init, shapes))
