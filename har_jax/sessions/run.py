"""The whole story of a run, top to bottom; each line names the room to enter for more.

sessions/plan.py       what is to be done, checked without a device
sessions/doctor.py     whether SCST has anything to learn from
sessions/assemble.py   mesh, parameters in their shards, the stage's loss, the batches
sessions/step.py       loss and step of a stage, from a blueprint; preflight compiles the same
training/step.py       loss, gradient, update: one jitted function
training/loop.py       steps, logs, validation, guards, checkpoints
sessions/observe.py    what is looked at on the way
"""

from __future__ import annotations

import dataclasses
import logging
import re
import textwrap
from contextlib import nullcontext
from typing import Any

import jax

from har_jax.checkpoint import Checkpoints, has_checkpoint
from har_jax.config import Config, GuardsConfig, ModelConfig
from har_jax.data import overlap
from har_jax.hardware import GIB
from har_jax.loading.blueprint import Blueprint
from har_jax.models.functional import Params
from har_jax.models.quantised import dense_sizes
from har_jax.sessions.assemble import Session, assemble
from har_jax.sessions.budget import budget, peak_seconds
from har_jax.sessions.doctor import examine_policy, examine_texts, refuse
from har_jax.sessions.observe import policy_distance, summariser, validator, watches_clip
from har_jax.sessions.plan import SessionPlan
from har_jax.sessions.step import training_step
from har_jax.training.guards import Guards, Trip
from har_jax.training.loggers import Logger, RunLog
from har_jax.training.loop import Hooks, fit
from har_jax.training.optimizer import make_schedule
from har_jax.training.overview import parameter_overview
from har_jax.training.preemption import preemption
from har_jax.training.profile import OneStep, Profile
from har_jax.training.run_dir import begun_with, check_run, hold, note, open_run, run_info
from har_jax.training.trackers import make_trackers

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a session ended."""

    finished: bool  # reached config.steps; False: left in order before
    step: int
    compilations: int  # of the training step; more than 1 means that some shape changed
    stopped_by: Trip | None = None  # the guard that ended it
    signal: int = 0  # the signal that it left because of
    primary: bool = True  # of several processes the one that writes


def train(
    plan: SessionPlan, *, stop_after: int | None = None, profile: Profile | None = None
) -> Outcome:
    """Runs (or resumes) a planned session.

    Args:
      stop_after: leave in order after so many steps of this process.
      profile: traces some of the steps; None: one, for the shares of its parts.

    Raises:
      UserError: the run directory is another run's, or the doctor refuses.
      TrainingError: see `training.loop`.
    """
    # While nothing is there to be saved, a signal ends the process at once.
    with preemption(), hold(plan.workdir) if jax.process_index() == 0 else nullcontext():
        return _train(plan, stop_after, profile)


def _train(plan: SessionPlan, stop_after: int | None, profile: Profile | None) -> Outcome:
    """See `train`."""
    # 1. May this run be here? On one process, before anything is written or loaded.
    config, workdir = plan.config, plan.workdir
    primary = jax.process_index() == 0
    info = run_info(
        config,
        base=plan.parts.identity,
        parent=plan.parent,
        reward_signature=plan.reward_signature,
        parameters=count_parameters(plan.parts.blueprint),
        data=plan.data,
        start=start_of(plan),
        hub=plan.hub,
        spec=plan.spec,
    )
    if primary:
        check_run(workdir, config, info)

    # 2. Is there anything for SCST to learn? What the references alone tell needs no device.
    examining = config.stage == "scst" and config.scst.doctor != "off"
    examining = examining and not has_checkpoint(workdir)  # a resumed run was examined
    if examining:
        refuse(examine_texts(plan), config.scst.doctor)

    # 3. Mesh, frozen parameters in their shards, the stage's loss, the batches.
    session = assemble(plan)
    before: dict[str, float] = {}
    loaded: list[Params] = []  # what the doctor has seen, for the loop to take over
    if examining:
        loaded.append(session.initial_params())
        examination = examine_policy(session, loaded[0])
        refuse(examination.findings, config.scst.doctor)
        before = examination.figures

    # 4. The run directory, and the first lines of the log.
    if primary:
        tell_extended(config, begun_with(workdir) if has_checkpoint(workdir) else None)
        resumed = open_run(workdir, config, info)
        overlap.save(workdir, plan.trained_on)
        if plan.reward is not None:
            plan.reward.save(workdir)
        announce(session, info, resumed)

    # 5. The step: loss, gradient and update, compiled once.
    step = training_step(session.blueprint, config, session.loss_fn, session.mesh)

    # 6. What is watched on the way.
    others = make_trackers(config.trackers, workdir, config.to_dict()) if primary else ()
    logger = RunLog(workdir, enabled=primary, total_steps=config.steps, others=others)
    hooks = observers(session, logger)
    guards = watch(session, hooks, before) if config.stage == "scst" else None

    # 7. The loop.
    checkpoints = Checkpoints(workdir)
    result = fit(
        config,
        step,
        lambda: loaded.pop() if loaded else session.initial_params(),
        session.frozen,
        session.batches,
        checkpoints,
        logger,
        session.mesh,
        hooks,
        guards=guards,
        stop_after=stop_after,
        profile=profile or (OneStep() if primary else None),
    )
    if step.compilations > 1:
        log.warning("the training step was compiled %d times: a shape changes", step.compilations)
    checkpoints.close()
    logger.close()
    ended = result.stopped_by, result.signal
    return Outcome(result.finished, result.step, step.compilations, *ended, primary)


def observers(session: Session, logger: Logger) -> Hooks:
    """What the loop calls: validation, texts of rollouts, a reward's exception, roll-backs."""
    plan, callback = session.plan, session.callback
    primary = jax.process_index() == 0
    return Hooks(
        validate=validator(session, logger) if plan.val_split else None,
        summarise=summariser(plan) if callback else None,
        check=callback.raise_if_failed if callback else None,
        leave=callback.leave if callback else None,
        spent=(lambda: {"reward": callback.seconds()}) if callback else None,
        peak_seconds=peak_seconds(session.blueprint, plan.config, session.mesh),
        note=(lambda rollbacks: note(plan.workdir, rollbacks=rollbacks)) if primary else None,
    )


def watch(session: Session, hooks: Hooks, before: dict[str, float]) -> Guards:
    """The guards of SCST, which know the policy before the first step; `kl` keeps a copy of it."""
    plan = session.plan
    watched: GuardsConfig = plan.config.guards
    if watched.clip != "off" and not watches_clip(plan):
        log.info("  guard clip  off: it needs config.eval.clip_score and a validation split")
        watched = dataclasses.replace(watched, clip="off")
    guards = Guards(watched, reference_length=session.batches.captions.mean_length)
    guards.begin(before)
    if watched.kl != "off":  # of its own: the step takes its parameters' memory over
        hooks.measure = policy_distance(session, session.initial_params())
    return guards


def tell_extended(config: Config, before: Config | None) -> None:
    """What a run that is continued to another last step does to its learning rate, in the log."""
    if before is None or before.steps == config.steps or config.optim.schedule == "constant":
        return
    at = min(before.steps, config.steps)
    rates = [make_schedule(config.optim, steps)(at) for steps in (before.steps, config.steps)]
    log.warning(
        "config.steps was %d and is now %d: the schedule is that of the new length, so that the "
        "learning rate at step %d is %.2g, where it was %.2g",
        *(before.steps, config.steps, at, rates[1], rates[0]),
    )


def count_parameters(blueprint: Blueprint) -> dict[str, int]:
    """How many numbers there are, and how many of them learn."""
    sizes = dense_sizes(blueprint.shapes)
    return {"total": sum(sizes.values()), "trained": sum(sizes[n] for n in blueprint.trained)}


def start_of(plan: SessionPlan) -> dict[str, Any] | None:
    """What `run.json` says of what a run starts from that is no run."""
    start = plan.start
    return None if start is None or plan.parent else {"path": start.name, "kind": start.kind}


def announce(session: Session, info: dict, resumed: bool) -> None:
    """What begins, in the log."""
    plan, counts = session.plan, info["parameters"]
    config, blueprint = plan.config, session.blueprint
    n, whole = len(plan.train_split), plan.data["of"]
    log.info("%s %s: %s", "resuming" if resumed else "starting", config.stage, plan.workdir)
    some = f" of {whole}" if n < whole else ""
    log.info("  data        %s, %d images%s", config.data.dir, n, some)
    if plan.parts.features is None:
        log.info("  encoder     %s (frozen)", config.model.encoder)
    else:
        log.info("  features    %s", plan.parts.features.describe())
    log.info("  decoder     %s%s", config.model.lm, _how_it_learns(config.model, blueprint))
    log.info("  tokenizer   %s", plan.parts.tokenizer.describe())
    log.info("  words       %s", plan.words.signature)
    total, learning = f"{counts['total']:,}", f"{counts['trained']:,}"
    log.info("  parameters  %s, of which %s learn", total, learning)
    log.info("  mesh        %s on %s", dict(session.mesh.shape), info["devices"])
    held = budget(blueprint, config, session.mesh)
    parts = ", ".join(
        f"{name.removeprefix('rollout: ')} {size / GIB:.2g}"
        for name, size in {**held.kept, **held.made}.items()
        if size > 0.01 * GIB
    )
    told = f"{held.total / GIB:.2g} GiB and activations" + (f" ({parts})" if parts else "")
    log.info("  each holds  %s", told)
    if plan.parent:
        log.info("  starts from %s, step %d", plan.parent["run"], plan.parent["step"])
    elif started := start_of(plan):
        log.info("  starts from %s (%s)", started["path"], started["kind"])
    if info["reward_signature"]:
        log.info("  reward      %s", info["reward_signature"])
    if not resumed:
        shardings = blueprint.shardings(session.mesh)
        table = parameter_overview(blueprint.shapes, set(blueprint.trained), shardings)
        log.info("parameters\n%s", textwrap.indent(table, "  "))


def _how_it_learns(model: ModelConfig, blueprint: Blueprint) -> str:
    if not model.lora.rank:
        return "" if model.train_lm else " (frozen)"
    shapes, axes = blueprint.shapes, blueprint.logical_axes
    factors = [n for n in shapes if n.endswith(".lora_a")]
    count = sum(shapes[n].shape[0] if axes[n][0] == "layers" else 1 for n in factors)
    kinds = sorted({re.sub(r"^lm\.(layers\.(\d+\.)?)?|\.lora_a$", "", n) for n in factors})
    return f" (frozen) + LoRA r={model.lora.rank} on {count} linears ({', '.join(kinds)})"
