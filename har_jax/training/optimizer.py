"""The optimizer of a run, from its configuration, by optax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from har_jax.config import OptimConfig
from har_jax.sharding import LogicalAxes
from har_jax.types import AnyArray

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Linear warm-up to `lr`, then cosine, linear or no decay to `final_lr_factor * lr`."""
    decay_steps = max(steps - config.warmup_steps, 1)
    end = config.lr * config.final_lr_factor
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.lr, decay_steps, config.final_lr_factor)
    elif config.schedule == "linear":
        main = optax.linear_schedule(config.lr, end, decay_steps)
    else:
        main = optax.constant_schedule(config.lr)
    if not config.warmup_steps:
        return main
    steps = config.warmup_steps
    warmup = optax.linear_schedule(config.lr / steps, config.lr, steps - 1 or 1)
    return optax.join_schedules([warmup, main], [steps])


def make_optimizer(
    config: OptimConfig, logical_axes: Mapping[str, LogicalAxes] | None = None
) -> optax.GradientTransformation:
    """Clipping, the rule, weight decay on matrices, learning rates per group.

    Its updates are those of a learning rate of 1: the step multiplies them by the schedule's.
    `logical_axes` of the parameters tell which axes of a kernel are inputs, which outputs, and
    which number the layers. Adafactor's `lr` is relative, as published: a step moves a parameter by
    `lr` times its root mean square.
    """
    axes = logical_axes or {}
    rules = {
        "adamw": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2),
        "muon": lambda: _muon(config, axes),
        "adafactor": lambda: _adafactor(axes),
        "sgd": optax.identity,
    }
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(rules[config.name]())
    if config.weight_decay:
        mask = functools.partial(_matrices, logical_axes=axes)
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    parts.append(optax.scale(-1.0))
    if (factor := config.projector_lr_factor) != 1:

        def faster(updates: Any, params: Any) -> Any:
            del params
            return {k: u * factor if k.startswith("projector.") else u for k, u in updates.items()}

        parts.append(optax.stateless(faster))
    return optax.chain(*parts)


def _muon(
    config: OptimConfig, logical_axes: Mapping[str, LogicalAxes]
) -> optax.GradientTransformation:
    """Muon for the kernels of hidden layers and, for all the rest, the rule of `adamw`, up to
    learning rate and decay, which both groups share with it: matrices decay, embeddings and the
    output layer among them, vectors and biases do not.

    Muon's updates are made as large as Adam's (Liu et al. 2025, "Muon is scalable for LLM
    training"), so that one learning rate does for both.
    """
    found = {name: muon_dimensions(axes) for name, axes in logical_axes.items()}
    dimensions: Any = {name: d or optax.MaskedNode() for name, d in found.items()}
    kernels = muon(  # optax turns the sign round; `make_optimizer` does so after the decay
        -1.0, consistent_rms=0.2, muon_weight_dimension_numbers=dimensions
    )
    rules: dict[Any, optax.GradientTransformation]
    rules = {"muon": kernels, "adam": optax.scale_by_adam(b1=config.b1, b2=config.b2)}
    return optax.partition(rules, {name: "muon" if d else "adam" for name, d in found.items()})


def muon_dimensions(axes: LogicalAxes) -> MuonDimensionNumbers | None:
    """Which axes of a kernel are its inputs and which its outputs; None where Adam is to be used.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises updates of hidden
    layers; embeddings, output layers, vectors and biases are left to Adam, as its authors advise.
    """
    if not _is_matrix(axes) or {"vocab", "position"} & set(axes):
        return None
    layers, n_in = _split_axes(axes)
    inputs = tuple(range(layers, layers + n_in))
    # An axis without a name counts matrices that one kernel holds: q, k and v of GPT-2.
    outputs = (i for i in range(layers + n_in, len(axes)) if axes[i] is not None)
    return MuonDimensionNumbers(inputs, tuple(outputs))


_OF_HEADS = {"heads", "kv_heads", "head_dim", None}


def _is_matrix(axes: LogicalAxes) -> bool:
    """Whether it maps one side to another. A vector does not, and no more does a bias of heads,
    `[heads, head_dim]`, which is a vector in two axes."""
    own = axes[_split_axes(axes)[0] :]
    return len(own) > 1 and not set(own) <= _OF_HEADS


def _split_axes(axes: LogicalAxes) -> tuple[int, int]:
    """How many axes of a kernel number stacked layers (0 or 1), and how many after are inputs.

    A scalar, such as CLIP's temperature, has none of either."""
    layers = int(axes[:1] == ("layers",))
    own = axes[layers:]
    if not own:
        return layers, 0
    return layers, 1 if own[0] in ("embed", "lora") else len(own) - 1


def _matrices(
    params: Mapping[str, AnyArray], logical_axes: Mapping[str, LogicalAxes]
) -> dict[str, bool]:
    """What decays: neither norms nor biases, stacked over layers or not."""
    return {
        name: _is_matrix(logical_axes[name]) if name in logical_axes else value.ndim > 1
        for name, value in params.items()
    }


def _adafactor(logical_axes: Mapping[str, LogicalAxes]) -> optax.GradientTransformation:
    """Adafactor without momentum (Shazeer & Stern 2018, algorithm 4), up to the learning rate.

    Second moments factored, updates clipped to a root mean square of 1, steps relative to the
    parameter's. `optax.adafactor` has the same parts, but would take the heads of a kernel for
    layers, and would not factor kernels whose heads are narrower than 128.
    """
    return optax.chain(
        _as_matrices(optax.scale_by_factored_rms(), logical_axes),
        _by_layer(optax.clip_by_block_rms(1.0), logical_axes),
        _by_layer(optax.scale_by_param_block_rms(), logical_axes),
    )


def _by_layer(
    rule: optax.GradientTransformation, logical_axes: Mapping[str, LogicalAxes]
) -> optax.GradientTransformation:
    """A rule without a state, which sees every layer of a stacked parameter alone."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def alone(update: Any, param: Any) -> Any:
            return rule.update(update, state, param)[0]

        changed = {}
        for name, update in updates.items():
            stacked = name in logical_axes and _split_axes(logical_axes[name])[0]
            call = jax.vmap(alone) if stacked else alone
            changed[name] = call(update, None if params is None else params[name])
        return changed, state

    return optax.GradientTransformation(rule.init, update)


def _as_matrices(
    rule: optax.GradientTransformation, logical_axes: Mapping[str, LogicalAxes]
) -> optax.GradientTransformation:
    """A rule that sees `[in, out]` (or `[layers, in, out]`) of each kernel `[in..., out...]`."""

    def view(values: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        return {name: x.reshape(shape_of(name, x.shape)) for name, x in values.items()}

    def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        layers, n_in = _split_axes(logical_axes[name]) if name in logical_axes else (0, 1)
        if len(shape) - layers < 3:
            return shape
        cut = layers + n_in
        return (*shape[:layers], math.prod(shape[layers:cut]), math.prod(shape[cut:]))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        seen: Any
        seen, state = rule.update(view(updates), state, params if params is None else view(params))
        return {name: x.reshape(updates[name].shape) for name, x in seen.items()}, state

    return optax.GradientTransformation(lambda params: rule.init(view(params)), update)
