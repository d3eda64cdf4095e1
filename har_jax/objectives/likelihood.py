"""Stage 1, maximum likelihood (eq. 1 of the HAR paper).

    L(θ) = − Σ_i Σ_t log P_θ(y_it | y_i<t, p_i)

over the references of each image, all R of them attending to the one prefix p_i. Reported and
minimised per token, so that the learning rate does not depend on the batch's number of words.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from har_jax.data.pipeline import visual
from har_jax.figures import Figure, Loss, LossFn, Mean, PerStep
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.models.logprobs import length_mask
from har_jax.types import Array


def make_mle_loss(structure: Structure[Captioner]) -> LossFn:
    """The loss of a batch `image [B,H,W,3]` (or `features [B,S,Dv]`), `tokens [B,R,T]`,
    `lengths [B,R]` (0: padding). Its weight is the number of tokens."""

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> Loss:
        del key  # nothing here is random: the batch order is the pipeline's
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))
        scores = captioner.token_scores(cache, batch["tokens"])
        mask = length_mask(batch["lengths"], batch["tokens"].shape[-1])
        total = -jnp.sum(scores.logp * mask)
        n_tokens = jnp.sum(mask)
        figures: dict[str, Figure] = {
            "accuracy": Mean(jnp.sum(scores.likeliest * mask), n_tokens),
            "tokens": PerStep(n_tokens),
        }
        return Loss(total, n_tokens, figures)

    return loss_fn
