"""The loss and the jitted step of a run, made from a blueprint: no parameter need be there.

`run.py` trains with them, and `preflight.py` compiles the very same ahead.
"""

from __future__ import annotations

from jax.sharding import Mesh

from har_jax.config import Config
from har_jax.figures import LossFn
from har_jax.loading.blueprint import Blueprint
from har_jax.objectives.experience import RewardFn
from har_jax.objectives.likelihood import make_mle_loss
from har_jax.objectives.policy_gradient import find_objective
from har_jax.objectives.self_critical import make_scst_loss
from har_jax.training.optimizer import make_optimizer, make_schedule
from har_jax.training.step import TrainStep, make_train_step


def stage_loss(blueprint: Blueprint, config: Config, reward: RewardFn | None) -> LossFn:
    """The loss of the configured stage; MLE has no reward."""
    if config.stage == "mle":
        return make_mle_loss(blueprint.structure)
    assert reward is not None
    objective, length = find_objective(config.scst.objective), config.data.max_tokens
    return make_scst_loss(blueprint.structure, config.scst, length, reward, objective)


def training_step(blueprint: Blueprint, config: Config, loss_fn: LossFn, mesh: Mesh) -> TrainStep:
    """Loss, gradient and update of what learns, compiled at its first call."""
    trained = blueprint.abstract_trained(mesh)
    axes = {name: blueprint.logical_axes[name] for name in trained}
    rule, schedule = make_optimizer(config.optim, axes), make_schedule(config.optim, config.steps)
    shardings = {name: x.sharding for name, x in trained.items()}
    return make_train_step(
        loss_fn, rule, schedule, trained, shardings, mesh, config.seed, config.microbatches
    )
