"""A training session from its configuration: everything checked first, then put together and run.

`plan` reads files and touches no device, so a mistake costs a second and not a pod's start-up.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import Checkpoints, abstract, resolve_step
from har_jax.config import Config, check_devices
from har_jax.data.dataset import Split, document_frequency_path, open_split
from har_jax.data.pipeline import train_batches
from har_jax.decoding import DecodePlan
from har_jax.errors import UserError
from har_jax.evaluation.run import caption_split
from har_jax.inference import (
    Foundation,
    LoadedCaptioner,
    is_trained,
    load_lm_params,
    load_vision_params,
    new_projector_params,
    read_foundation,
    read_run,
)
from har_jax.metrics import health
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.metrics.corpus import score_captions
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.rewards import mix
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward
from har_jax.sharding import ROLLOUT_RULES, make_mesh
from har_jax.stages.mle import make_mle_loss
from har_jax.stages.scst import make_scst_loss
from har_jax.text import ptb
from har_jax.training.loop import Hooks, fit
from har_jax.training.optimizer import make_optimizer
from har_jax.training.run_dir import open_run, run_info
from har_jax.training.step import make_train_step
from har_jax.training.writers import MetricsWriter

log = logging.getLogger(__name__)

N_SAMPLES = 8
"""Captions shown in `samples.jsonl` at a time."""


@dataclasses.dataclass
class Plan:
    """A session whose files have been read and found to fit together."""

    config: Config
    workdir: pathlib.Path
    foundation: Foundation
    train_split: Split
    val_split: Split | None
    reward: MixedReward | None
    parent: dict[str, Any] | None


def plan(config: Config, workdir: str | pathlib.Path) -> Plan:
    """Checks a configuration against the files that it names; raises `UserError`."""
    foundation = read_foundation(config.model)
    data = config.data
    train_split = open_split(data.dir, data.train_split)
    if not len(train_split):
        raise UserError(f"{data.dir!r}: its split {data.train_split!r} is empty")
    val_split = open_split(data.dir, data.val_split) if data.val_split else None
    if data.max_tokens == 0:
        needed = _needed_tokens(train_split, foundation)
        config = dataclasses.replace(config, data=dataclasses.replace(data, max_tokens=needed))
    if config.batch_size > len(train_split):
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(train_split)} images of "
            f"{data.dir!r} {data.train_split!r}; lower it"
        )
    parent = _check_parent(config, foundation) if config.stage == "scst" else None
    reward = _reward(config, train_split) if config.stage == "scst" else None
    return Plan(config, pathlib.Path(workdir), foundation, train_split, val_split, reward, parent)


MOST_TOKENS = 64
"""A bound on `max_tokens` where it is chosen by the data: one rambling caption pads all others."""


def _needed_tokens(split: Split, foundation: Foundation) -> int:
    """T for 999 of 1,000 training captions, EOS included, rounded up to a multiple of four."""
    captions = [caption for those in split.captions for caption in those]
    lengths = [len(ids) for ids in foundation.tokenizer.encode_batch(captions)]
    longest = math.ceil(np.quantile(lengths, 0.999, method="higher"))
    return min(-(-longest // 4) * 4, MOST_TOKENS)


def _check_parent(config: Config, foundation: Foundation) -> dict[str, Any]:
    """`init_from` must be a finished-enough MLE run of the same model; says where SCST starts."""
    name = f"config.init_from={config.init_from!r}"
    parent, info = read_run(config.init_from)
    if parent.stage != "mle":
        raise UserError(
            f"{name} is a run of stage {parent.stage!r}; SCST starts from an MLE run "
            "(configs/mle.py)"
        )
    before, now = parent.model, config.model
    for key in ("projector", "prefix_tokens", "projector_hidden", "vision_layer", "prompt"):
        if getattr(before, key) != getattr(now, key):
            raise UserError(
                f"{name} was trained with model.{key}={getattr(before, key)!r}, but this "
                f"configuration says {getattr(now, key)!r}; set --config.model.{key}="
                f"{getattr(before, key)}"
            )
    for part, there in foundation.base.items():
        then = info.get("base", {}).get(part, {}).get("fingerprint")
        if then != there["fingerprint"]:
            what = "tokenizer" if part == "tokenizer" else f"base model {part!r}"
            raise UserError(
                f"{name} was trained with another {what} ({str(then)[:12]}) than this "
                f"configuration names ({there['fingerprint'][:12]}); set config.model to its own: "
                f"clip={before.clip!r}, lm={before.lm!r}"
            )
    step = resolve_step(config.init_from, "best")
    return {"run": str(config.init_from), "step": step, "stage": parent.stage}


def _reward(config: Config, split: Split) -> MixedReward:
    path = document_frequency_path(config.data.dir, config.data.train_split)
    if not path.exists():
        raise UserError(
            f"{path} is missing: CIDEr-D needs the document frequencies of the training "
            "references; prepare the dataset again with har_jax.prepare"
        )
    frequencies = DocumentFrequency.load(path)
    return mix.build(config.scst.reward, frequencies, split.references(), eos=config.scst.eos)


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
        validate=_validator(plan, structure, frozen, mesh, writer) if plan.val_split else None,
        summarise=_summariser(plan, writer) if callback else None,
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


def _validator(
    plan: Plan,
    structure: Structure[Captioner],
    frozen: Params,
    mesh: Mesh,
    writer: MetricsWriter,
) -> Any:
    """Greedy captions of the validation split, scored without a CLIP: fast enough to do often."""
    config, foundation, split = plan.config, plan.foundation, plan.val_split
    assert split is not None
    live = LoadedCaptioner(
        structure, {}, foundation.tokenizer, foundation.preprocessor, mesh, config
    )
    n_images = min(config.eval.images or len(split), len(split))
    references = split.references()

    def validate(trained: Params, step: int) -> dict[str, float]:
        live.params = {**frozen, **trained}
        captions = caption_split(live, split, limit=n_images)
        live.params = {}
        texts = captions.texts
        wanted = {i: references[i] for i in texts}
        scores = score_captions(wanted, texts, metrics=("CIDEr", "Bleu"))
        figures = {k: v for k, v in scores.corpus.items() if v is not None}
        figures |= health.summary([ptb.words(text) for text in texts.values()])
        figures["cut_rate"] = captions.cut_rate
        shown = list(texts)[:N_SAMPLES]
        writer.samples(
            step,
            config.data.val_split,
            [{"image_id": i, "caption": texts[i], "references": wanted[i]} for i in shown],
        )
        return figures

    return validate


def _summariser(plan: Plan, writer: MetricsWriter) -> Any:
    """What the texts of a rollout show and its rewards hide: bad endings, repetition."""
    tokenizer, reward = plan.foundation.tokenizer, plan.reward
    assert reward is not None

    def summarise(arrays: Mapping[str, Any], step: int) -> dict[str, float]:
        del step
        tokens, lengths = (_local_rows(arrays[f"rollout/{k}"]) for k in ("tokens", "lengths"))
        words = [
            [ptb.words(tokenizer.decode(row[:n].tolist())) for row, n in zip(rows, ns, strict=True)]
            for rows, ns in zip(tokens, lengths, strict=True)
        ]
        samples = [caption for rows in words for caption in rows[1:]]
        # Each part unweighted, over all rows of this process since the last log.
        means = reward.take_means() if len(reward.parts) > 1 else {}
        return {
            **{f"reward_part/{name}": mean for name, mean in means.items()},
            "bad_end_rate": health.bad_end_rate(samples),
            "bad_end_rate_greedy": health.bad_end_rate([rows[0] for rows in words]),
            "repetition_rate": health.repetition_rate(samples),
        }

    return summarise


def _local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array, each once."""
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


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
