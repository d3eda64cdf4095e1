"""Rewards: host code from captions to numbers; `rewards.contract` says what one is.

    reward = har_jax.rewards.trl("cider_d + 0.5*bleu", "data/coco")
    trainer = trl.GRPOTrainer(reward_funcs=reward, ...)

This file is a door: it holds a name and where it lives, and imports nothing until it is used
(docs/architecture.md, "Doors").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from har_jax.scorers.trl_reward import TrlReward, trl

__all__ = ["TrlReward", "trl"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'har_jax.rewards' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("har_jax.scorers.trl_reward"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
