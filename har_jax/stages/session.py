"""A training session: what `stages.plan` found to fit together, put together and run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.assembly import (
    is_trained,
    load_lm_params,
    load_vision_params,
    new_projector_params,
)
from har_jax.checkpoint import Checkpoints, abstract
from har_jax.config import Config, check_devices
from har_jax.data.pipeline import train_batches
from har_jax.decoding import DecodePlan
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.rewards.callback import RewardCallback
from har_jax.sharding import ROLLOUT_RULES, make_mesh
from har_jax.stages.mle import make_mle_loss
from har_jax.stages.observe import summariser, validator
from har_jax.stages.plan import Plan
from har_jax.stages.scst import make_scst_loss
from har_jax.training.loop import Hooks, fit
from har_jax.training.optimizer import make_optimizer
from har_jax.training.run_dir import open_run, run_info
from har_jax.training.step import make_train_step
from har_jax.training.writers import MetricsWriter

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a session ended."""

    finished: bool  # reached config.steps; False: left in order before
    step: int
    compilations: int  # of the training step; more than 1 means that some shape changed


def train(plan: Plan, *, stop_after: int | None = None) -> Outcome:
    """Runs (or resumes) a planned session."""
    config, foundation = plan.config, plan.foundation
    check_devices(config, jax.device_count())
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    structure = foundation.structure(config.model)
    reward_signature = None if plan.reward is None else plan.reward.signature
    if reward_signature and config.scst.baseline:
        reward_signature += f"+baseline[{config.scst.baseline},K={config.scst.samples}]"
    info = run_info(
        config,
        base=foundation.base,
        parent=plan.parent,
        reward_signature=reward_signature,
        parameters=_count(structure, config),
    )
    primary = jax.process_index() == 0
    if primary:
        resumed = open_run(plan.workdir, config, info)
        _announce(plan, info, mesh, resumed)

    checkpoints = Checkpoints(plan.workdir)
    trained, frozen = _parameters(plan, structure, mesh)
    shardings = structure.shardings(mesh)
    callback = None
    if config.stage == "mle":
        loss_fn = make_mle_loss(structure)
    else:
        assert plan.reward is not None
        callback = RewardCallback(
            plan.reward,
            foundation.tokenizer.decode,
            eos_id=foundation.tokenizer.eos_id,
            mesh=mesh,
            vocab_size=foundation.config.lm.vocab_size,
        )
        decode_plan = DecodePlan(
            config.data.max_tokens,
            greedy=True,
            samples=config.scst.samples,
            temperature=config.scst.temperature,
        )
        loss_fn = make_scst_loss(
            structure,
            decode_plan,
            callback,
            config.scst.baseline,
            structure.shardings(mesh, ROLLOUT_RULES) if mesh.size > 1 else None,
        )
    axes = {name: axes for name, axes in structure.logical_axes.items() if name in trained}
    step = make_train_step(
        loss_fn,
        make_optimizer(config.optim, config.steps, axes),
        trained,
        {name: shardings[name] for name in trained},
        mesh,
        config.seed,
    )
    batches = train_batches(
        plan.train_split,
        foundation.preprocessor,
        foundation.tokenizer,
        batch_size=config.batch_size // jax.process_count(),
        captions_per_image=config.data.captions_per_image,
        max_tokens=config.data.max_tokens,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_images=config.data.cache_images,
    )
    writer = MetricsWriter(plan.workdir, enabled=primary, total_steps=config.steps)
    hooks = Hooks(
        validate=validator(plan, structure, frozen, mesh, writer) if plan.val_split else None,
        summarise=summariser(plan, writer) if callback else None,
        check=callback.raise_if_failed if callback else None,
    )
    state, finished = fit(
        config,
        step,
        trained,
        frozen,
        batches,
        checkpoints,
        writer,
        mesh,
        hooks,
        stop_after=stop_after,
    )
    if step.compilations > 1:
        log.warning(
            "the training step was compiled %d times; some shape changes", step.compilations
        )
    checkpoints.close()
    writer.close()
    return Outcome(finished, int(state.step), step.compilations)


def _parameters(plan: Plan, structure: Structure[Captioner], mesh: Mesh) -> tuple[Params, Params]:
    """The trained and the frozen parameters before the first step, in their shards."""
    config, model = plan.config, plan.config.model
    frozen = load_vision_params(model, mesh)
    if not model.train_lm:
        frozen |= load_lm_params(model, mesh, dtype=model.frozen_dtype)
    if plan.parent is None:
        trained = new_projector_params(plan.foundation, model, config.seed, mesh)
        if model.train_lm:
            trained |= load_lm_params(model, mesh)
    else:
        shapes = {n: x for n, x in structure.shapes.items() if is_trained(n, model)}
        shardings = structure.shardings(mesh)
        checkpoints = Checkpoints(plan.parent["run"], read_only=True)
        trained = checkpoints.restore_params(
            plan.parent["step"], abstract(shapes, {n: shardings[n] for n in shapes})
        )
        checkpoints.close()
    return trained, frozen


def _count(structure: Structure[Captioner], config: Config) -> dict[str, int]:
    sizes = {name: int(np.prod(x.shape)) for name, x in structure.shapes.items()}
    trained = sum(n for name, n in sizes.items() if is_trained(name, config.model))
    return {"total": sum(sizes.values()), "trained": trained}


def _announce(plan: Plan, info: Mapping[str, Any], mesh: Mesh, resumed: bool) -> None:
    config, counts = plan.config, info["parameters"]
    log.info("%s %s: %s", "resuming" if resumed else "starting", config.stage, plan.workdir)
    log.info("  data        %s, %d images", config.data.dir, len(plan.train_split))
    log.info("  encoder     %s (frozen)", config.model.clip)
    log.info("  decoder     %s%s", config.model.lm, "" if config.model.train_lm else " (frozen)")
    log.info(
        "  parameters  %s, of which %s learn", f"{counts['total']:,}", f"{counts['trained']:,}"
    )
    log.info("  mesh        %s on %s", dict(mesh.shape), info["devices"])
    if plan.parent:
        log.info("  starts from %s, step %d", plan.parent["run"], plan.parent["step"])
    if info["reward_signature"]:
        log.info("  reward      %s", info["reward_signature"])
