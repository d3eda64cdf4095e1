"""Stage 2, self-critical sequence training (eq. 2 of the HAR paper; Rennie et al. 2017).

    L(θ) = − E_{y^s ~ P_θ} [ (R(y^s) − b) Σ_t log P_θ(y^s_t | y^s_<t, p) ]

R is CIDEr-D against the image's references and b the reward of the greedy caption, or, with
`leave_one_out`, the mean reward of the image's other samples (Luo 2020, "A better variant of
self-critical sequence training"), or, with `both`, the mean of these two. None of them depends on
y^s itself, so none biases the gradient.

The whole stage is one differentiable function: encode, project and prefill once; one decode loop
writes the greedy row and the K sampled rows; the reward comes back from the host; the samples are
scored again by teacher forcing, and only that is differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.sharding import NamedSharding

from har_jax.data.pipeline import visual
from har_jax.decoding import DecodePlan, decode
from har_jax.models.captioner import Captioner, length_mask
from har_jax.models.functional import Params, Structure, split
from har_jax.objectives.likelihood import LossFn
from har_jax.rewards.callback import RewardCallback
from har_jax.types import Array, Float

Baseline = Literal["greedy", "leave_one_out", "both"]


def advantages(rewards_br: Float[Array, "B R"], baseline: Baseline) -> Float[Array, "B K"]:
    """R(y^s) − b for the K samples, which follow the greedy caption in `rewards_br`."""
    greedy, samples = rewards_br[:, :1], rewards_br[:, 1:]
    if baseline == "greedy":
        return samples - greedy
    k = samples.shape[1]
    left_out = (samples - jnp.mean(samples, axis=1, keepdims=True)) * (k / (k - 1))
    if baseline == "both":
        return (left_out + samples - greedy) / 2
    return left_out


def policy_gradient_loss(
    logp_bkt: Float[Array, "B K T"],
    mask_bkt: Float[Array, "B K T"],
    advantages_bk: Float[Array, "B K"],
) -> Float[Array, ""]:
    """− mean of A · Σ_t log P(y_t): its gradient is the REINFORCE estimate of eq. 2."""
    sequence_logp = jnp.sum(logp_bkt * mask_bkt, axis=-1)
    return -jnp.mean(stop_gradient(advantages_bk) * sequence_logp)


def make_scst_loss(
    structure: Structure[Captioner],
    plan: DecodePlan,
    reward: RewardCallback,
    baseline: Baseline = "greedy",
    rollout_shardings: Mapping[str, NamedSharding] | None = None,
) -> LossFn:
    """The loss of a batch `image [B,H,W,3]` (or `features [B,S,Dv]`), `image_id [B]`.

    `rollout_shardings` place the weights that the decode loop reads (`sharding.ROLLOUT_RULES`, by
    the names of `Captioner.for_decoding`): they are gathered once, before the loop, and not for
    every token.
    """
    if not plan.greedy or plan.samples < 1:
        raise ValueError("SCST needs a plan with a greedy row and at least one sample")

    def loss_fn(
        params: Params, batch: Mapping[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(visual(batch))))

        writer = structure.merge(jax.tree.map(stop_gradient, params)).for_decoding()
        if rollout_shardings is not None:  # of single layers: no whole stack is gathered
            apart, weights = split(writer)
            placed = {
                name: jax.lax.with_sharding_constraint(value, rollout_shardings[name])
                for name, value in weights.items()
                if name.startswith("lm.")
            }
            writer = apart.merge({**weights, **placed})
        rollout = decode(writer, stop_gradient(cache), plan, key)
        rewards, parts = reward.with_parts(
            batch["image_id"], rollout.tokens, rollout.lengths, params
        )

        samples, lengths = rollout.tokens[:, 1:], rollout.lengths[:, 1:]
        logp = captioner.score(cache, samples, temperature=plan.temperature)
        mask = length_mask(lengths, plan.max_tokens)
        advantage = advantages(rewards, baseline)
        loss = policy_gradient_loss(logp, mask, advantage)
        drift = jnp.abs(logp - rollout.logp[:, 1:]) * mask
        idle = jnp.abs(advantage) < 1e-6
        eos = captioner.config.lm.eos_token_id
        logs = {
            "reward": jnp.mean(rewards[:, 1:]),
            "reward_greedy": jnp.mean(rewards[:, :1]),
            "advantage_std": jnp.std(advantage),
            "zero_advantage": jnp.mean(idle.astype(jnp.float32)),
            "zero_images": jnp.mean(jnp.all(idle, axis=1).astype(jnp.float32)),
            "entropy": -jnp.sum(logp * mask) / jnp.sum(mask),  # nats per token, Monte Carlo
            "length": jnp.mean(lengths.astype(jnp.float32)),
            "length_greedy": jnp.mean(rollout.lengths[:, :1].astype(jnp.float32)),
            "ended": jnp.mean(jnp.any((samples == eos) & (mask > 0), axis=-1).astype(jnp.float32)),
            "logp_drift": jnp.max(drift),  # decode against score: must stay at rounding
        }
        arrays = {f"rollout/{name}": value for name, value in rollout._asdict().items()}
        by_part = {f"reward_part/{name}": jnp.mean(value) for name, value in parts.items()}
        return loss, {**logs, **by_part, **arrays}

    return loss_fn
