"""What a session looks at while it trains: captions of the validation split, texts of rollouts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from har_jax.data.dataset import Split
from har_jax.data.pipeline import EncodedCaptions, eval_batches, visual
from har_jax.distributed import local_rows, mean_over_processes
from har_jax.evaluation.run import write_captions
from har_jax.figures import Mean
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.writer import CaptionerWriter
from har_jax.metrics import health
from har_jax.metrics.corpus import score_captions
from har_jax.metrics.embedding_scores import clip_score
from har_jax.models.functional import Params
from har_jax.models.logprobs import length_mask
from har_jax.objectives.experience import token_mean
from har_jax.objectives.likelihood import make_mle_loss
from har_jax.scorers.clip import ClipScorer
from har_jax.sessions.assemble import Session
from har_jax.sessions.plan import SessionPlan
from har_jax.sharding import batch_sharding, divisible
from har_jax.training.loggers import Logger

N_SAMPLES = 8
"""Captions shown in `samples.jsonl` at a time."""


def validator(session: Session, logger: Logger) -> Callable[[Params, int], dict[str, float]]:
    """Greedy captions of the validation split, scored without METEOR and SPICE: fast enough to do
    often; and the loss of its references. CLIPScore is among the figures where the guard `clip`
    watches it."""
    plan, frozen = session.plan, session.frozen
    config, parts, split = plan.config, plan.parts, plan.val_split
    assert split is not None
    tools = parts.tokenizer, parts.preprocessor
    live = LoadedCaptioner(session.blueprint, {}, *tools, session.mesh, config)
    writer = CaptionerWriter(live, features=parts.features)
    n_images = min(config.eval.images or len(split), len(split))
    references = split.references()
    by_clip = _clip_scorer(plan, split, n_images) if watches_clip(plan) else None
    loss_of = _validation_loss(session, split, n_images)

    def validate(trained: Params, step: int) -> dict[str, float]:
        live.params = {**frozen, **trained}
        written = write_captions(writer, split, limit=n_images)
        figures = {"loss": loss_of(live.params)}
        live.params = {}
        texts = written.texts
        wanted = {i: references[i] for i in texts}
        scores = score_captions(wanted, texts, metrics=("CIDEr", "Bleu"), words=plan.words)
        figures |= {k: v for k, v in scores.corpus.items() if v is not None}
        figures |= health.summary([plan.words(text) for text in texts.values()])
        if written.cut_rate is not None:
            figures["cut_rate"] = written.cut_rate
        if by_clip is not None:
            figures["CLIPScore"] = by_clip(texts)
        rows = [{"image_id": i, "caption": texts[i], "references": wanted[i]} for i in texts]
        logger.samples(step, config.data.val_split, rows[:N_SAMPLES])
        return figures

    return validate


def _validation_loss(session: Session, split: Split, n_images: int) -> Callable[[Params], float]:
    """Nats per token of the references of the first images, by teacher forcing."""
    config, parts, mesh = session.plan.config, session.plan.parts, session.mesh
    data = config.data
    encoded = EncodedCaptions(split.captions, parts.tokenizer, data.max_tokens)
    loss_fn = make_mle_loss(session.blueprint.structure)

    @jax.jit
    def sums(params: Params, batch: Any) -> Mean:
        loss = loss_fn(params, batch, jax.random.key(0))
        return Mean(loss.total, loss.weight)

    def put(value: np.ndarray) -> jax.Array:
        # Every process has all rows here, as where captions are written.
        return jax.make_array_from_callback(value.shape, batch_sharding(mesh), lambda i: value[i])

    def loss_of(params: Params) -> float:
        size = divisible(min(n_images, config.eval.batch_size), mesh)
        texts, cache = (encoded, data.captions_per_image), parts.features
        batches = eval_batches(
            split, parts.preprocessor, batch_size=size, features=cache, captions=texts
        )
        total, weight, seen = 0.0, 0.0, 0
        with jax.set_mesh(mesh):
            for batch in batches:
                keep = batch["valid"] & (seen + np.arange(size) < n_images)
                lengths = np.where(keep[:, None], batch["lengths"], 0)
                key = "features" if "features" in batch else "image"
                rows = {key: visual(batch), "tokens": batch["tokens"], "lengths": lengths}
                found = sums(params, {name: put(value) for name, value in rows.items()})
                total, weight = total + float(found.total), weight + float(found.weight)
                seen += size
                if seen >= n_images:
                    break
        return total / max(weight, 1)

    return loss_of


def watches_clip(plan: SessionPlan) -> bool:
    """Whether the guard `clip` is on and has a CLIP to ask and images to ask it about."""
    config = plan.config
    if config.stage != "scst" or config.guards.clip == "off" or plan.val_split is None:
        return False
    return bool(config.eval.clip_score) and plan.parts.preprocessor is not None


def _clip_scorer(
    plan: SessionPlan, split: Split, n_images: int
) -> Callable[[Mapping[int, str]], float]:
    """Captions by image id → CLIPScore; the images are embedded once."""
    scorer = ClipScorer(plan.config.eval.clip_score, batch_size=plan.config.eval.batch_size)

    @functools.cache
    def images() -> dict[int, np.ndarray]:
        vectors = scorer.embed_images(split.read(i) for i in range(n_images))
        return dict(zip(split.ids[:n_images], vectors, strict=True))

    def score(texts: Mapping[int, str]) -> float:
        looks = np.stack([images()[i] for i in texts])
        return float(np.mean(clip_score(looks, scorer.embed_texts(list(texts.values())))))

    return score


def policy_distance(
    session: Session, start: Params
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, float]]:
    """KL of the policy from the MLE policy, nats per token, over the last step's samples.

    An estimate: the mean of log P(y_t) - log P_MLE(y_t) over the tokens that the policy drew.
    `start` holds the MLE policy's trained parameters, and is kept.
    """
    structure, frozen = session.blueprint.structure, session.frozen
    temperature = session.plan.config.scst.temperature

    @jax.jit
    def distance(start: Params, frozen: Params, batch: Any, samples: Any) -> jax.Array:
        captioner = structure.merge({**frozen, **start})
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))
        before = captioner.score(cache, samples["tokens"], temperature=temperature)
        mask = length_mask(samples["lengths"], samples["tokens"].shape[-1])
        return token_mean(samples["logp"] - before, mask)

    def measure(batch: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, float]:
        samples = {key: arrays[f"samples/{key}"] for key in ("tokens", "lengths", "logp")}
        return {"kl": float(distance(start, frozen, dict(batch), samples))}

    return measure


def summariser(plan: SessionPlan) -> Callable[[Mapping[str, Any], int], dict[str, float]]:
    """What the texts of a rollout show and its rewards hide: bad endings, repetition."""

    def summarise(arrays: Mapping[str, Any], step: int) -> dict[str, float]:
        del step
        samples = [words for image in rollout_words(plan, arrays, "samples") for words in image]
        own = {"bad_end_rate": health.bad_end_rate(samples)}
        own["repetition_rate"] = health.repetition_rate(samples)
        greedy = [words for image in rollout_words(plan, arrays, "greedy") for words in image]
        if greedy:
            own["bad_end_rate_greedy"] = health.bad_end_rate(greedy)
        return mean_over_processes(own)

    return summarise


def rollout_words(plan: SessionPlan, arrays: Mapping[str, Any], kind: str) -> list[list[list[str]]]:
    """The captions of a rollout of one kind, "samples" or "greedy", of this process's images, as
    words; [] where the step wrote none."""
    if f"{kind}/tokens" not in arrays:
        return []
    decode = plan.parts.tokenizer.decode
    tokens, lengths = (local_rows(arrays[f"{kind}/{k}"]) for k in ("tokens", "lengths"))
    return [
        [plan.words(decode(row[:n].tolist())) for row, n in zip(rows, ns, strict=True)]
        for rows, ns in zip(tokens, lengths, strict=True)
    ]
