"""The optimizer of a run, from its configuration, by optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from har_jax.config import OptimConfig
from har_jax.models.functional import Params
from har_jax.sharding import LogicalAxes

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
    warmup = optax.linear_schedule(
        config.lr / config.warmup_steps, config.lr, config.warmup_steps - 1 or 1
    )
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(
    config: OptimConfig, steps: int, logical_axes: Mapping[str, LogicalAxes] | None = None
) -> optax.GradientTransformation:
    """Clipping, the rule, weight decay on matrices, learning rates per group, the schedule.

    `logical_axes` of the parameters tell Muon which axes of a kernel are inputs and which outputs.
    """
    schedule = make_schedule(config, steps)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        dimensions: Any = {n: muon_dimensions(axes) for n, axes in (logical_axes or {}).items()}
        # Muon's updates are made as large as Adam's (Liu et al. 2025, "Muon is scalable for LLM
        # training"), so that both groups share one learning rate.
        rule = muon(
            schedule,
            adam_learning_rate=schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=dimensions,
        )
        parts.append(rule)
    else:
        rules = {
            "adamw": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2),
            "adafactor": optax.scale_by_factored_rms,
            "sgd": optax.identity,
        }
        parts.append(rules[config.name]())
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay, mask=_matrices))
        parts.append(optax.scale_by_learning_rate(schedule))
    if config.projector_lr_factor != 1:
        parts.append(optax.stateless(_faster_projector(config.projector_lr_factor)))
    return optax.chain(*parts)


def muon_dimensions(axes: LogicalAxes) -> MuonDimensionNumbers | None:
    """Which axes of a kernel are its inputs and which its outputs; None where Adam is to be used.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises updates of hidden
    layers; embeddings, output layers and vectors are left to Adam, as its authors advise.
    """
    if len(axes) < 2 or {"vocab", "position"} & set(axes):
        return None
    n_in = 1 if axes[0] == "embed" else len(axes) - 1
    return MuonDimensionNumbers(tuple(range(n_in)), tuple(range(n_in, len(axes))))


def _matrices(params: Params) -> dict[str, bool]:
    return {name: value.ndim > 1 for name, value in params.items()}


def _faster_projector(factor: float) -> Callable[[Any, Any], Any]:
    def scale(updates: Params, params: Any) -> Params:
        del params
        return {k: u * factor if k.startswith("projector.") else u for k, u in updates.items()}

    return scale
