"""What a session looks at while it trains: captions of the validation split, texts of rollouts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from har_jax.data.dataset import Split
from har_jax.data.pipeline import visual
from har_jax.evaluation.run import caption_split, images_of
from har_jax.loading.writer import LoadedCaptioner
from har_jax.metrics import health
from har_jax.metrics.clip_score import clip_score
from har_jax.metrics.corpus import score_captions
from har_jax.models.captioner import Captioner, length_mask
from har_jax.models.functional import Params, Structure
from har_jax.scorers.clip import ClipScorer
from har_jax.sessions.plan import Plan
from har_jax.text import ptb
from har_jax.training.loggers import MetricsWriter

N_SAMPLES = 8
"""Captions shown in `samples.jsonl` at a time."""


def validator(
    plan: Plan,
    structure: Structure[Captioner],
    frozen: Params,
    mesh: Mesh,
    writer: MetricsWriter,
) -> Any:
    """Greedy captions of the validation split, scored without METEOR and SPICE: fast enough to do
    often. CLIPScore is among the figures where the guard `clip` watches it."""
    config, foundation, split = plan.config, plan.foundation, plan.val_split
    assert split is not None
    live = LoadedCaptioner(
        structure, {}, foundation.tokenizer, foundation.preprocessor, mesh, config
    )
    n_images = min(config.eval.images or len(split), len(split))
    references = split.references()
    by_clip = _clip_scorer(plan, split, n_images) if watches_clip(plan) else None

    def validate(trained: Params, step: int) -> dict[str, float]:
        live.params = {**frozen, **trained}
        captions = caption_split(live, split, limit=n_images, features=plan.features)
        live.params = {}
        texts = captions.texts
        wanted = {i: references[i] for i in texts}
        scores = score_captions(wanted, texts, metrics=("CIDEr", "Bleu"))
        figures = {k: v for k, v in scores.corpus.items() if v is not None}
        figures |= health.summary([ptb.words(text) for text in texts.values()])
        figures["cut_rate"] = captions.cut_rate
        if by_clip is not None:
            figures["CLIPScore"] = by_clip(texts)
        shown = list(texts)[:N_SAMPLES]
        writer.samples(
            step,
            config.data.val_split,
            [{"image_id": i, "caption": texts[i], "references": wanted[i]} for i in shown],
        )
        return figures

    return validate


def watches_clip(plan: Plan) -> bool:
    """Whether the guard `clip` is on and has a CLIP to ask and images to ask it about."""
    config = plan.config
    if config.stage != "scst" or config.guards.clip == "off" or plan.val_split is None:
        return False
    return bool(config.eval.clip_score) and plan.foundation.preprocessor is not None


def _clip_scorer(plan: Plan, split: Split, n_images: int) -> Callable[[Mapping[int, str]], float]:
    """Captions by image id → CLIPScore; the images are embedded once."""
    scorer = ClipScorer(plan.config.eval.clip_score, batch_size=plan.config.eval.batch_size)

    @functools.cache
    def images() -> dict[int, np.ndarray]:
        ids = split.image_ids[:n_images]
        vectors = scorer.embed_images(image for _, image in images_of(split, n_images))
        return dict(zip(ids, vectors, strict=True))

    def score(texts: Mapping[int, str]) -> float:
        looks = np.stack([images()[i] for i in texts])
        return float(np.mean(clip_score(looks, scorer.embed_texts(list(texts.values())))))

    return score


def policy_distance(
    plan: Plan, structure: Structure[Captioner], start: Params, frozen: Params
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, float]]:
    """KL of the policy from the MLE policy, nats per token, over the last step's samples.

    An estimate: the mean of log P(y_t) - log P_MLE(y_t) over the tokens that the policy drew.
    `start` holds the MLE policy's trained parameters, and is kept.
    """
    temperature = plan.config.scst.temperature

    @jax.jit
    def distance(start: Params, frozen: Params, batch: Any, rollout: Any) -> jax.Array:
        captioner = structure.merge({**frozen, **start})
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))
        tokens, lengths, logp = (rollout[key][:, 1:] for key in ("tokens", "lengths", "logp"))
        before = captioner.score(cache, tokens, temperature=temperature)
        mask = length_mask(lengths, tokens.shape[-1])
        return jnp.sum((logp - before) * mask) / jnp.maximum(jnp.sum(mask), 1)

    def measure(batch: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, float]:
        rollout = {key: arrays[f"rollout/{key}"] for key in ("tokens", "lengths", "logp")}
        return {"kl": float(distance(start, frozen, dict(batch), rollout))}

    return measure


def summariser(plan: Plan, writer: MetricsWriter) -> Any:
    """What the texts of a rollout show and its rewards hide: bad endings, repetition."""
    reward = plan.reward
    assert reward is not None

    def summarise(arrays: Mapping[str, Any], step: int) -> dict[str, float]:
        del step
        words = rollout_words(plan, arrays)
        samples = [caption for rows in words for caption in rows[1:]]
        # Each part unweighted, over all rows of this process since the last log.
        means = reward.take_means() if len(reward.parts) > 1 else {}
        own = {
            **{f"reward_part/{name}": mean for name, mean in means.items()},
            "bad_end_rate": health.bad_end_rate(samples),
            "bad_end_rate_greedy": health.bad_end_rate([rows[0] for rows in words]),
            "repetition_rate": health.repetition_rate(samples),
        }
        return mean_over_processes(own)

    return summarise


def rollout_words(plan: Plan, arrays: Mapping[str, Any]) -> list[list[list[str]]]:
    """The captions of a rollout, of this process's images, as words: the greedy one first."""
    decode = plan.foundation.tokenizer.decode
    tokens, lengths = (_local_rows(arrays[f"rollout/{k}"]) for k in ("tokens", "lengths"))
    return [
        [ptb.words(decode(row[:n].tolist())) for row, n in zip(rows, ns, strict=True)]
        for rows, ns in zip(tokens, lengths, strict=True)
    ]


def mean_over_processes(figures: dict[str, float]) -> dict[str, float]:
    """Every process has as many rows; and guards must see the same figures in each of them."""
    if jax.process_count() == 1:
        return figures
    values = multihost_utils.process_allgather(np.asarray(list(figures.values()), np.float32))
    return dict(zip(figures, values.mean(axis=0).tolist(), strict=True))


def _local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array, each once."""
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])
