"""What a session looks at while it trains: captions of the validation split, texts of rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.evaluation.run import caption_split
from har_jax.inference import LoadedCaptioner
from har_jax.metrics import health
from har_jax.metrics.corpus import score_captions
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.stages.plan import Plan
from har_jax.text import ptb
from har_jax.training.writers import MetricsWriter

N_SAMPLES = 8
"""Captions shown in `samples.jsonl` at a time."""


def validator(
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


def summariser(plan: Plan, writer: MetricsWriter) -> Any:
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
