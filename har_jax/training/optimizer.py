"""The optimizer of a run, from its configuration, by optax."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from har_jax.config import OptimConfig
from har_jax.models.functional import Params

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


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, the rule, weight decay on matrices, learning rates per group, the schedule."""
    rules = {
        "adamw": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2),
        "adafactor": lambda: optax.scale_by_factored_rms(),
        "sgd": lambda: optax.identity(),
    }
    parts = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        rules[config.name](),
    ]
    if config.weight_decay:
        parts.append(
            optax.add_decayed_weights(
                config.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
            )
        )
    if config.projector_lr_factor != 1:
        parts.append(optax.stateless(_faster_projector(config.projector_lr_factor)))
    parts.append(optax.scale_by_learning_rate(make_schedule(config, steps)))
    return optax.chain(*parts)


def _faster_projector(factor: float) -> Callable[[Params, Params | None], Params]:
    def scale(updates: Params, params: Params | None) -> Params:
        del params
        return {k: u * factor if k.startswith("projector.") else u for k, u in updates.items()}

    return scale
