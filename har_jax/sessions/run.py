"""A training session: what `sessions.plan` found to fit together, put together and run."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import Checkpoints, has_checkpoint
from har_jax.config import Config, ModelConfig, check_devices
from har_jax.data import overlap
from har_jax.data.pipeline import TrainBatches, train_batches
from har_jax.decoding import DecodePlan
from har_jax.loading.blueprint import (
    is_trained,
    load_lm_params,
    load_vision_params,
    new_lora_params,
    new_projector_params,
    restore_trained,
)
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.objectives.likelihood import LossFn, make_mle_loss
from har_jax.objectives.policy_gradient import make_scst_loss
from har_jax.rewards.callback import RewardCallback
from har_jax.scorers.clip_reward import clip_parts
from har_jax.sessions.doctor import examine_policy, examine_texts, refuse
from har_jax.sessions.observe import policy_distance, summariser, validator, watches_clip
from har_jax.sessions.plan import Plan
from har_jax.sharding import ROLLOUT_RULES, make_mesh
from har_jax.training.guards import Guards, Trip
from har_jax.training.loggers import MetricsWriter
from har_jax.training.loop import Hooks, fit
from har_jax.training.optimizer import make_optimizer
from har_jax.training.run_dir import check_run, note, open_run, run_info
from har_jax.training.step import make_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a session ended."""

    finished: bool  # reached config.steps; False: left in order before
    step: int
    compilations: int  # of the training step; more than 1 means that some shape changed
    stopped_by: Trip | None = None  # the guard that ended it


@dataclasses.dataclass
class Session:
    """A plan on its devices: parameters in their shards, the stage's loss, the batches."""

    plan: Plan
    mesh: Mesh
    structure: Structure[Captioner]
    trained: Params
    frozen: Params
    loss_fn: LossFn
    callback: RewardCallback | None  # SCST's
    batches: TrainBatches

    @functools.cached_property
    def look(self) -> Callable[[Params, Params, Mapping[str, jax.Array], jax.Array], Any]:
        """(trained, frozen, batch, key) → what a step logs, without its gradient; compiled."""

        def look(trained: Params, frozen: Params, batch: Any, key: jax.Array) -> Any:
            return self.loss_fn({**frozen, **trained}, batch, key)[1]

        return jax.jit(look)


def assemble(plan: Plan) -> Session:
    """Loads what a plan names. Nothing is written."""
    config, foundation = plan.config, plan.foundation
    check_devices(config, jax.device_count())
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    structure = foundation.structure(config.model)
    trained, frozen = _parameters(plan, mesh)
    callback = None
    if config.stage == "mle":
        loss_fn = make_mle_loss(structure)
    else:
        assert plan.reward is not None
        for part in clip_parts(plan.reward):
            frozen |= part.load(mesh, plan.workdir)
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
            structure.map(Captioner.for_decoding).shardings(mesh, ROLLOUT_RULES)
            if mesh.size > 1
            else None,
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
        features=plan.features,
    )
    return Session(plan, mesh, structure, trained, frozen, loss_fn, callback, batches)


def train(plan: Plan, *, stop_after: int | None = None) -> Outcome:
    """Runs (or resumes) a planned session."""
    config, foundation = plan.config, plan.foundation
    check_devices(config, jax.device_count())
    info = run_info(
        config,
        base=foundation.base,
        parent=plan.parent,
        reward_signature=_reward_signature(plan),
        parameters=_count(foundation.structure(config.model), config),
        data=plan.data,
    )
    primary = jax.process_index() == 0
    if primary:
        check_run(plan.workdir, config, info)
    examining = config.stage == "scst" and config.scst.doctor != "off"
    examining = examining and not has_checkpoint(plan.workdir)  # a resumed run was examined
    if examining:
        refuse(examine_texts(plan), config.scst.doctor)
    session = assemble(plan)
    before: dict[str, float] = {}
    if examining:
        examination = examine_policy(session)
        refuse(examination.findings, config.scst.doctor)
        before = examination.figures
    mesh, structure, callback = session.mesh, session.structure, session.callback
    trained, frozen = session.trained, session.frozen
    if primary:
        resumed = open_run(plan.workdir, config, info)
        overlap.save(plan.workdir, plan.trained_on)
        for part in clip_parts(plan.reward) if plan.reward else ():
            part.save(plan.workdir)
        _announce(plan, info, mesh, structure, resumed)

    checkpoints = Checkpoints(plan.workdir)
    shardings = structure.shardings(mesh)
    axes = {name: axes for name, axes in structure.logical_axes.items() if name in trained}
    step = make_train_step(
        session.loss_fn,
        make_optimizer(config.optim, config.steps, axes),
        trained,
        {name: shardings[name] for name in trained},
        mesh,
        config.seed,
    )
    writer = MetricsWriter(plan.workdir, enabled=primary, total_steps=config.steps)
    hooks = Hooks(
        validate=validator(plan, structure, frozen, mesh, writer) if plan.val_split else None,
        summarise=summariser(plan, writer) if callback else None,
        check=callback.raise_if_failed if callback else None,
        start_over=lambda: _parameters(plan, mesh)[0],
        note=(lambda rollbacks: note(plan.workdir, rollbacks=rollbacks)) if primary else None,
    )
    guards = None
    if config.stage == "scst":
        watched = config.guards
        if watched.clip != "off" and not watches_clip(plan):
            log.info("  guard clip  off: it needs config.eval.clip_score and a validation split")
            watched = dataclasses.replace(watched, clip="off")
        guards = Guards(watched, reference_length=session.batches.captions.mean_length)
        guards.begin(before)
        if watched.kl != "off":  # a copy: the step takes its parameters' memory over
            start = jax.tree.map(jnp.copy, trained)
            hooks.measure = policy_distance(plan, structure, start, frozen)
    result = fit(
        config,
        step,
        trained,
        frozen,
        session.batches,
        checkpoints,
        writer,
        mesh,
        hooks,
        guards=guards,
        stop_after=stop_after,
    )
    if step.compilations > 1:
        log.warning(
            "the training step was compiled %d times; some shape changes", step.compilations
        )
    checkpoints.close()
    writer.close()
    return Outcome(result.finished, int(result.state.step), step.compilations, result.stopped_by)


def _reward_signature(plan: Plan) -> str | None:
    """What the rewards and their baseline depend on; None in MLE."""
    if plan.reward is None:
        return None
    scst = plan.config.scst
    return f"{plan.reward.signature}+baseline[{scst.baseline},K={scst.samples}]"


def _parameters(plan: Plan, mesh: Mesh) -> tuple[Params, Params]:
    """The trained and the frozen parameters before the first step, in their shards."""
    config, model = plan.config, plan.config.model
    frozen = load_vision_params(model, mesh) if plan.foundation.config.vision else {}
    if not model.trains_base:
        frozen |= load_lm_params(model, mesh, dtype=model.frozen_dtype)
    if plan.parent is None:
        trained = new_projector_params(plan.foundation, model, config.seed, mesh)
        trained |= new_lora_params(plan.foundation, model, config.seed, mesh)
        if model.trains_base:
            trained |= load_lm_params(model, mesh)
    else:
        run, step = plan.parent["run"], plan.parent["step"]
        trained = restore_trained(plan.foundation, model, run, step, mesh)
    return trained, frozen


def _count(structure: Structure[Captioner], config: Config) -> dict[str, int]:
    sizes = {name: int(np.prod(x.shape)) for name, x in structure.shapes.items()}
    trained = sum(n for name, n in sizes.items() if is_trained(name, config.model))
    return {"total": sum(sizes.values()), "trained": trained}


def _how_it_learns(model: ModelConfig, structure: Structure[Captioner]) -> str:
    if not model.lora.rank:
        return "" if model.train_lm else " (frozen)"
    shapes, axes = structure.shapes, structure.logical_axes
    factors = [n for n in structure.names if n.endswith(".lora_a")]
    count = sum(shapes[n].shape[0] if axes[n][0] == "layers" else 1 for n in factors)
    kinds = sorted({re.sub(r"^lm\.(layers\.(\d+\.)?)?|\.lora_a$", "", n) for n in factors})
    return f" (frozen) + LoRA r={model.lora.rank} on {count} linears ({', '.join(kinds)})"


def _announce(
    plan: Plan,
    info: Mapping[str, Any],
    mesh: Mesh,
    structure: Structure[Captioner],
    resumed: bool,
) -> None:
    config, counts = plan.config, info["parameters"]
    log.info("%s %s: %s", "resuming" if resumed else "starting", config.stage, plan.workdir)
    whole = plan.data["of"]
    log.info(
        "  data        %s, %d images%s",
        config.data.dir,
        len(plan.train_split),
        f" of {whole}" if len(plan.train_split) < whole else "",
    )
    if plan.features is None:
        log.info("  encoder     %s (frozen)", config.model.clip)
    else:
        log.info("  features    %s", plan.features.describe())
    log.info("  decoder     %s%s", config.model.lm, _how_it_learns(config.model, structure))
    log.info(
        "  parameters  %s, of which %s learn", f"{counts['total']:,}", f"{counts['trained']:,}"
    )
    log.info("  mesh        %s on %s", dict(mesh.shape), info["devices"])
    if plan.parent:
        log.info("  starts from %s, step %d", plan.parent["run"], plan.parent["step"])
    if info["reward_signature"]:
        log.info("  reward      %s", info["reward_signature"])
