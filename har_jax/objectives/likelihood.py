"""Stage 1, maximum likelihood (eq. 1 of the HAR paper).

    L(θ) = − Σ_i Σ_t log P_θ(y_it | y_i<t, p_i)

over the references of each image, all R of them attending to the one prefix p_i. Reported and
minimised per token, so that the learning rate does not depend on the batch's number of words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from har_jax.data.pipeline import visual
from har_jax.models.captioner import Captioner, length_mask
from har_jax.models.functional import Params, Structure
from har_jax.types import Array

LossFn = Callable[[Params, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]]
"""(parameters, batch, key) → (loss, what to log)."""


def make_mle_loss(structure: Structure[Captioner]) -> LossFn:
    """The loss of a batch `image [B,H,W,3]` (or `features [B,S,Dv]`), `tokens [B,R,T]`,
    `lengths [B,R]` (0: padding)."""

    def loss_fn(
        params: Params, batch: Mapping[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        del key  # nothing here is random: the batch order is the pipeline's
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))
        logits = captioner.logits(cache, batch["tokens"])
        mask = length_mask(batch["lengths"], batch["tokens"].shape[-1])
        chosen = jnp.take_along_axis(logits, batch["tokens"][..., None], axis=-1)[..., 0]
        nll = (jax.nn.logsumexp(logits, axis=-1) - chosen) * mask
        n_tokens = jnp.maximum(jnp.sum(mask), 1)
        loss = jnp.sum(nll) / n_tokens
        right = (jnp.argmax(logits, axis=-1) == batch["tokens"]) * mask
        return loss, {"accuracy": jnp.sum(right) / n_tokens, "tokens": jnp.sum(mask)}

    return loss_fn
