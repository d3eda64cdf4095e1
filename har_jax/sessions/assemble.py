"""A planned session on its devices: the mesh, the stage's loss, the batches. Nothing is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from har_jax.config import check_devices
from har_jax.data.pipeline import TrainBatches
from har_jax.distributed import batch_part
from har_jax.figures import Loss, LossFn
from har_jax.loading.blueprint import Blueprint
from har_jax.loading.weights import load_frozen, new_trained, restore_trained
from har_jax.models.functional import Params
from har_jax.rewards.callback import RewardCallback
from har_jax.sessions.budget import budget, refuse_if_too_large
from har_jax.sessions.meshes import choose_mesh
from har_jax.sessions.plan import SessionPlan
from har_jax.sessions.step import stage_loss
from har_jax.sharding import RULES


@dataclasses.dataclass
class Session:
    """What a run computes with, but for the parameters that it trains.

    Attributes:
      frozen: parameters that the step reads and never changes, those of rewards among them.
      callback: SCST's reward inside a step; None in MLE.
    """

    plan: SessionPlan
    blueprint: Blueprint
    mesh: Mesh
    frozen: Params
    loss_fn: LossFn
    callback: RewardCallback | None
    batches: TrainBatches

    def initial_params(self) -> Params:
        """What learns, before the first step: as what the run starts from has it, and fresh where
        that has none. Loaded anew by each call, and kept by nobody but the caller."""
        plan, blueprint, mesh = self.plan, self.blueprint, self.mesh
        known: Params = {}
        if plan.start is not None:
            known = plan.start.own(blueprint, mesh, RULES)
        elif plan.parent is not None:
            known = restore_trained(blueprint, plan.parent["run"], plan.parent["step"], mesh)
        return new_trained(blueprint, plan.config.seed, mesh, known=known)

    @functools.cached_property
    def look(self) -> Callable[[Params, Params, Mapping[str, jax.Array], jax.Array], Loss]:
        """(trained, frozen, batch, key) → what a step would tell, without its gradient;
        compiled."""

        def look(trained: Params, frozen: Params, batch: Any, key: jax.Array) -> Loss:
            return self.loss_fn({**frozen, **trained}, batch, key)

        return jax.jit(look)


def assemble(plan: SessionPlan) -> Session:
    """Puts a plan on its devices."""
    config, parts = plan.config, plan.parts
    mesh = choose_mesh(parts.blueprint, config, jax.devices())
    sizes = {f"mesh.{axis}": n for axis, n in mesh.shape.items()}
    check_devices(config.changed(**sizes), mesh.size)
    blueprint = parts.blueprint.placed_on(mesh)
    refuse_if_too_large(budget(blueprint, config, mesh), mesh)
    frozen = load_frozen(blueprint, mesh)
    callback = None
    if plan.reward is not None:
        frozen |= plan.reward.load(mesh, plan.workdir)
        decode, size = parts.tokenizer.decode, blueprint.config.lm.vocab_size
        ends = {"eos_ids": parts.tokenizer.eos_ids, "vocab_size": size}
        seconds = config.scst.reward_timeout
        callback = RewardCallback(plan.reward, decode, mesh=mesh, seconds=seconds, **ends)
    loss_fn = stage_loss(blueprint, config, callback)
    part, of = batch_part(mesh)  # this process's rows of the global batches
    batches = TrainBatches(
        plan.train_split,
        parts.preprocessor,
        parts.tokenizer,
        batch_size=config.batch_size // of,
        captions_per_image=config.data.captions_per_image,
        max_tokens=config.data.max_tokens,
        seed=config.seed,
        process_index=part,
        process_count=of,
        cache_images=config.data.cache_images,
        features=parts.features,
    )
    return Session(plan, blueprint, mesh, frozen, loss_fn, callback, batches)
