"""Stage 2, self-critical sequence training: the whole of a step's loss, as one differentiable
function.

Encode, project and prefill once; write and reward (`objectives/experience.py`); score the samples
again by teacher forcing, which alone is differentiated; hand both to the objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.lax import stop_gradient

from har_jax.config import ScstConfig
from har_jax.data.pipeline import visual
from har_jax.decoding import DecodePlan
from har_jax.decoding.loop import is_end
from har_jax.figures import Figure, Loss, Max, PartedLoss, PerStep, mean
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.models.functional import Params, Structure
from har_jax.models.logprobs import TokenScores
from har_jax.objectives.experience import Experience, Objective, RewardFn, collect
from har_jax.objectives.policy_gradient import needs_greedy, policy_gradient
from har_jax.types import Array


def rollout_plan(config: ScstConfig, max_tokens: int) -> DecodePlan:
    """What a step writes: K samples, and a greedy caption where the baseline is made of one."""
    greedy = needs_greedy(config.baseline)
    return DecodePlan(max_tokens, greedy, config.samples, config.temperature)


def make_scst_loss(
    structure: Structure[Captioner],
    config: ScstConfig,
    max_tokens: int,
    reward: RewardFn,
    objective: Objective = policy_gradient,
) -> PartedLoss:
    """The loss of a batch `image [B,H,W,3]` (or `features [B,S,Dv]`), `image_id [B]`.

    In parts, the rollout and its rewards are of the whole batch, in one loop; what is
    differentiated is made of some images at a time, their prefixes among it.
    """
    plan = rollout_plan(config, max_tokens)

    def experience_of(
        params: Params, batch: Mapping[str, Array], cache: PrefixCache, key: Array
    ) -> Experience:
        # What the policy writes, and what that earns: no gradient goes through it.
        writing = structure.merge(stop_gradient(params))
        fixed = stop_gradient(cache)
        return collect(writing, fixed, plan, reward, batch["image_id"], key, params)

    def update(captioner: Captioner, cache: PrefixCache, experience: Experience) -> Loss:
        # Log-probabilities of the samples: the same policy, at the same temperature.
        tokens = experience.samples.tokens
        scores = captioner.token_scores(cache, tokens, temperature=config.temperature)
        # The objective, and what is logged beside its own figures.
        loss = objective(experience, scores.logp, config)
        figures = {**_figures(experience, scores, captioner.config.eos_ids), **loss.figures}
        return Loss(loss.total, loss.weight, figures, _arrays(experience) | loss.arrays)

    def whole(params: Params, batch: Mapping[str, Array], key: Array) -> Loss:
        # The prefix of every image, once for all its captions, the written and the scored ones.
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))
        return update(captioner, cache, experience_of(params, batch, cache, key))

    def prepare(params: Params, batch: Mapping[str, Array], key: Array) -> dict[str, Any]:
        captioner = structure.merge(params)
        features = captioner.encode(visual(batch))
        cache = captioner.prefill(captioner.project(features))
        return {"features": features, "experience": experience_of(params, batch, cache, key)}

    def part(params: Params, prepared: Mapping[str, Any], key: Array) -> Loss:
        del key  # what is random was drawn by the rollout
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(prepared["features"]))
        return update(captioner, cache, prepared["experience"])

    return PartedLoss(whole, prepare, part)


def _figures(
    experience: Experience, scores: TokenScores, eos_ids: tuple[int, ...]
) -> dict[str, Figure]:
    samples, mask, logp = experience.samples, experience.mask_bkt, scores.logp
    ended = jnp.any(is_end(samples.tokens, eos_ids) & (mask > 0), axis=-1)
    figures: dict[str, Figure] = {
        "reward": mean(experience.rewards_bk),
        "entropy": mean(scores.entropy, mask),  # nats per token, of the whole distribution
        "length": mean(samples.lengths),
        "tokens": PerStep(jnp.sum(mask)),  # sampled by the step, as MLE has those of the references
        "ended": mean(ended),
        # Decode against score: must stay at rounding.
        "logp_drift": Max(jnp.max(jnp.abs(logp - samples.logp) * mask)),
    }
    if experience.greedy is not None and experience.reward_greedy_b1 is not None:
        figures["reward_greedy"] = mean(experience.reward_greedy_b1)
        figures["length_greedy"] = mean(experience.greedy.lengths)
    if len(experience.parts) > 1:
        figures |= {f"reward_part/{name}": mean(x) for name, x in experience.parts.items()}
    return figures


def _arrays(experience: Experience) -> dict[str, Array]:
    """Of the last step, for those who read the captions themselves."""
    kinds = {"samples": experience.samples, "greedy": experience.greedy}
    there = {kind: captions._asdict() for kind, captions in kinds.items() if captions is not None}
    return {f"{kind}/{name}": x for kind, fields in there.items() for name, x in fields.items()}
