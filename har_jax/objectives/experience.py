"""What a rollout leaves for objectives, and how it comes about.

`collect` lets the policy write, and the reward judge; nothing of it is differentiated. An objective
(`objectives/policy_gradient.py` is one) is a pure function of an `Experience` and of the
log-probabilities that the parameters of now give its samples, so microbatches, several updates a
rollout, or other estimators stand between the two without either knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from har_jax.config import ScstConfig
from har_jax.decoding import Captions, DecodePlan, decode
from har_jax.decoding.weights import for_decoding
from har_jax.figures import Loss
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.models.functional import Params
from har_jax.models.logprobs import length_mask
from har_jax.types import Array, Float, Int, Key


class Experience(NamedTuple):
    """The samples of B images and what they earned."""

    samples: Captions  # K of each image, with the log-probabilities that they were drawn with
    rewards_bk: Float[Array, "B K"]
    parts: dict[str, Float[Array, "B R"]]  # of the reward, unweighted, of all rows, greedy first
    greedy: Captions | None  # where the plan has such a row
    reward_greedy_b1: Float[Array, "B 1"] | None
    # Of another policy, for objectives of KL.
    reference_logp_bkt: Float[Array, "B K T"] | None = None

    @property
    def mask_bkt(self) -> Float[Array, "B K T"]:
        """1 for the tokens of a sample, its EOS included."""
        return length_mask(self.samples.lengths, self.samples.tokens.shape[-1])


@runtime_checkable
class RewardFn(Protocol):
    """A reward inside a jitted step (`rewards.callback.RewardCallback`)."""

    def __call__(
        self,
        image_ids: Int[Array, " B"],
        tokens: Int[Array, "B R T"],
        lengths: Int[Array, "B R"],
        params: Mapping[str, Array] | None = None,
        /,
    ) -> tuple[Float[Array, "B R"], dict[str, Float[Array, "B R"]]]: ...


Objective = Callable[[Experience, Float[Array, "B K T"], ScstConfig], Loss]
"""(experience, log-probabilities of its samples under the parameters of now, settings) → loss."""


def collect(
    captioner: Captioner,
    cache: PrefixCache,
    plan: DecodePlan,
    reward: RewardFn,
    image_ids: Int[Array, " B"],
    key: Key[Array, ""],
    params: Params,
) -> Experience:
    """Writes the plan's captions and has them rewarded.

    Args:
      captioner, cache: of parameters that no gradient is to reach (`lax.stop_gradient`).
      params: the step's, of which rewards that need a network read their own.
    """
    # 1. The greedy row and the K sampled rows, in one loop, upon weights that are in place once.
    rollout = decode(for_decoding(captioner), cache, plan, key)
    assert rollout.samples is not None
    written = rollout.together
    # 2. Their rewards, each row's by the process that holds its image.
    with jax.named_scope("reward"):
        rewards, parts = reward(image_ids, written.tokens, written.lengths, params)
    # 3. Samples and baseline apart.
    first = int(plan.greedy)
    return Experience(
        samples=rollout.samples,
        rewards_bk=rewards[:, first:],
        parts=parts,
        greedy=rollout.greedy,
        reward_greedy_b1=rewards[:, :1] if plan.greedy else None,
    )


def token_mean(values_bkt: Float[Array, "B K T"], mask_bkt: Float[Array, "B K T"]) -> Array:
    """The mean over the tokens of all captions."""
    return jnp.sum(values_bkt * mask_bkt) / jnp.maximum(jnp.sum(mask_bkt), 1)
