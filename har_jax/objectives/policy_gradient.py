"""The policy gradient of self-critical training (eq. 2 of the HAR paper; Rennie et al. 2017).

    L(θ) = − E_{y^s ~ P_θ} [ (R(y^s) − b) Σ_t log P_θ(y^s_t | y^s_<t, p) ]

R is CIDEr-D against the image's references and b the reward of the greedy caption, or, with
`leave_one_out`, the mean reward of the image's other samples (Luo 2020, "A better variant of
self-critical sequence training"), or, with `both`, the mean of these two. None of them depends on
y^s itself, so none biases the gradient.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient

from har_jax.config import ScstConfig
from har_jax.errors import UserError, did_you_mean
from har_jax.figures import Loss, deviation, mean
from har_jax.objectives.experience import Experience, Objective
from har_jax.plugins import load_function
from har_jax.types import Array, Float

BASELINES_WITHOUT_GREEDY = ("leave_one_out",)


def needs_greedy(baseline: str) -> bool:
    """Whether a baseline is made of the greedy caption's reward; else no such row is written."""
    return baseline not in BASELINES_WITHOUT_GREEDY


def advantages(experience: Experience, baseline: str) -> Float[Array, "B K"]:
    """R(y^s) − b of the K samples of each image."""
    samples, greedy = experience.rewards_bk, experience.reward_greedy_b1
    k = samples.shape[1]
    if baseline == "greedy":
        assert greedy is not None
        return samples - greedy
    left_out = (samples - jnp.mean(samples, axis=1, keepdims=True)) * (k / (k - 1))
    if baseline == "leave_one_out":
        return left_out
    assert greedy is not None
    return (left_out + samples - greedy) / 2


def policy_gradient_loss(
    logp_bkt: Float[Array, "B K T"],
    mask_bkt: Float[Array, "B K T"],
    advantages_bk: Float[Array, "B K"],
) -> Float[Array, ""]:
    """− Σ A · Σ_t log P(y_t), over B·K samples: its gradient is their REINFORCE estimate of eq.
    2."""
    sequence_logp = jnp.sum(logp_bkt * mask_bkt, axis=-1)
    return -jnp.sum(stop_gradient(advantages_bk) * sequence_logp)


def policy_gradient(
    experience: Experience, logp_bkt: Float[Array, "B K T"], config: ScstConfig
) -> Loss:
    """The objective of `scst.objective=policy_gradient`, an `experience.Objective`: eq. 2, per
    sample."""
    advantage = advantages(experience, config.baseline)
    idle = jnp.abs(advantage) < 1e-6
    figures = {
        "advantage_std": deviation(advantage),
        "zero_advantage": mean(idle),
        "zero_images": mean(jnp.all(idle, axis=1)),
    }
    total = policy_gradient_loss(logp_bkt, experience.mask_bkt, advantage)
    return Loss(total, jnp.float32(advantage.size), figures)


OBJECTIVES: dict[str, Objective] = {"policy_gradient": policy_gradient}


def find_objective(name: str) -> Objective:
    """The objective of a name, or a user's own, `package.module:function`.

    Raises:
      UserError: there is no such objective or function.
    """
    if ":" in name:
        return load_function(name, "objective")
    if name not in OBJECTIVES:
        raise UserError(
            f"config.scst.objective is {name!r}{did_you_mean(name, OBJECTIVES)}; choose from "
            f"{', '.join(OBJECTIVES)}, or name a function of yours as package.module:function"
        )
    return OBJECTIVES[name]
