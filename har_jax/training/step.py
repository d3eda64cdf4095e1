"""One jitted training step, the same for every objective: loss, gradient, update."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from har_jax.checkpoint import abstract
from har_jax.figures import Figure, Last, LossFn, Mean, mean
from har_jax.models.functional import Params
from har_jax.sharding import replicated
from har_jax.training.gradients import make_gradient
from har_jax.training.optimizer import Schedule
from har_jax.types import Array, PyTree


class TrainState(NamedTuple):
    """What a step changes. Frozen parameters are no part of it, nor of a checkpoint."""

    step: Array  # int32 []: updates done; the schedule of the learning rate follows it
    params: Params  # the trained ones
    optimizer: PyTree
    lr_scale: Array  # float32 []: of the learning rate; 1 unless guards rolled the run back


class StepOutput(NamedTuple):
    """What a step tells."""

    figures: dict[str, Figure]  # to be logged
    arrays: dict[str, Array]  # of the objective, such as a rollout's tokens


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """`step(state, frozen, batch) -> (state, output)`, and what its state is.

    Attributes:
      abstract: shapes, dtypes and shardings of a state.
    """

    function: Callable[..., tuple[TrainState, StepOutput]]
    optimizer: optax.GradientTransformation
    abstract: TrainState

    def __call__(
        self, state: TrainState, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[TrainState, StepOutput]:
        return self.function(state, frozen, batch)

    def start(self, params: Params) -> TrainState:
        """The state before the first step; optimizer moments are born in their shards."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract.optimizer)
        return self.state(0, params, jax.jit(self.optimizer.init, out_shardings=shardings)(params))

    def state(self, step: int, params: Params, optimizer: PyTree, scale: float = 1) -> TrainState:
        """A state from its parts; `scale` is that of the learning rate."""
        number = jax.device_put(np.int32(step), self.abstract.step.sharding)
        lr_scale = jax.device_put(np.float32(scale), self.abstract.lr_scale.sharding)
        return TrainState(number, params, optimizer, lr_scale)

    def program(self, state: TrainState, frozen: Params, batch: Mapping[str, Array]) -> str:
        """HLO of the step, as it was compiled for arguments like these."""
        # JAX keeps what a call compiled: arguments that it has seen are not compiled again.
        lowered = self.function.lower(state, frozen, batch)  # type: ignore[attr-defined]
        return lowered.compile().as_text()

    @property
    def compilations(self) -> int:
        """How often XLA compiled the step; more than one means that some shape changes."""
        return self.function._cache_size()  # type: ignore[attr-defined]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    params: Mapping[str, Any],
    param_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
    seed: int,
    microbatches: int = 1,
) -> TrainStep:
    """Compiles `loss_fn` into a step over `params` (arrays or shapes of the trained ones).

    Everything random in step n comes from `fold_in(key(seed), n)`, so a resumed run draws what an
    unbroken one would have drawn. The state is donated.

    Args:
      optimizer: makes updates for a learning rate of 1.
      schedule: step → learning rate. It follows the state's step, which goes on when guards take
        parameters and moments back to an earlier checkpoint.
      microbatches: in how many parts gradients are made, one after the other.
    """
    gradient = make_gradient(loss_fn, microbatches)

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, StepOutput]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        # 1. The loss, and its gradient with respect to the trained parameters alone.
        loss, grads = gradient(state.params, frozen, batch, key)
        # 2. The optimizer's update, scaled by the learning rate of this step.
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        rate, scale = jnp.asarray(schedule(state.step), jnp.float32), state.lr_scale
        updates = jax.tree.map(lambda u: u * rate.astype(u.dtype) * scale.astype(u.dtype), updates)
        params = cast(Params, optax.apply_updates(state.params, updates))
        # 3. What is logged.
        figures = {
            "loss": Mean(loss.total, loss.weight),
            **loss.figures,
            "grad_norm": mean(optax.global_norm(grads)),
            "learning_rate": Last(rate * scale),
        }
        output = StepOutput(figures, loss.arrays)
        return TrainState(state.step + 1, params, optimizer_state, state.lr_scale), output

    whole = replicated(mesh)
    number: Any = functools.partial(jax.ShapeDtypeStruct, (), sharding=whole)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    moments = jax.eval_shape(optimizer.init, shapes)
    described = TrainState(
        number(jnp.int32),
        abstract(shapes, dict(param_shardings)),
        abstract(moments, optimizer_shardings(optimizer, shapes, param_shardings, mesh)),
        number(jnp.float32),
    )
    shardings = jax.tree.map(lambda x: x.sharding, described)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return TrainStep(jitted, optimizer, described)


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
