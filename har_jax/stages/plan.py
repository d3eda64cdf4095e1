"""A training session checked before it starts: every file that a configuration names is read and
found to fit the others, and no device is touched, so a mistake costs a second and not a pod's
start-up.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from har_jax.assembly import Foundation, read_foundation, read_run
from har_jax.checkpoint import resolve_step
from har_jax.config import Config
from har_jax.data.dataset import Split, document_frequency_path, open_split
from har_jax.errors import UserError
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.rewards import mix
from har_jax.rewards.mix import MixedReward


@dataclasses.dataclass
class Plan:
    """A session whose files have been read and found to fit together."""

    config: Config
    workdir: pathlib.Path
    foundation: Foundation
    train_split: Split
    val_split: Split | None
    reward: MixedReward | None
    parent: dict[str, Any] | None


def make_plan(config: Config, workdir: str | pathlib.Path) -> Plan:
    """Checks a configuration against the files that it names; raises `UserError`."""
    foundation = read_foundation(config.model)
    data = config.data
    train_split = open_split(data.dir, data.train_split)
    if not len(train_split):
        raise UserError(f"{data.dir!r}: its split {data.train_split!r} is empty")
    val_split = open_split(data.dir, data.val_split) if data.val_split else None
    if data.max_tokens == 0:
        needed = _needed_tokens(train_split, foundation)
        config = dataclasses.replace(config, data=dataclasses.replace(data, max_tokens=needed))
    if config.batch_size > len(train_split):
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(train_split)} images of "
            f"{data.dir!r} {data.train_split!r}; lower it"
        )
    parent = _check_parent(config, foundation) if config.stage == "scst" else None
    reward = _reward(config, train_split) if config.stage == "scst" else None
    return Plan(config, pathlib.Path(workdir), foundation, train_split, val_split, reward, parent)


MOST_TOKENS = 64
"""A bound on `max_tokens` where it is chosen by the data: one rambling caption pads all others."""


def _needed_tokens(split: Split, foundation: Foundation) -> int:
    """T for 999 of 1,000 training captions, EOS included, rounded up to a multiple of four."""
    captions = [caption for those in split.captions for caption in those]
    lengths = [len(ids) for ids in foundation.tokenizer.encode_batch(captions)]
    longest = math.ceil(np.quantile(lengths, 0.999, method="higher"))
    return min(-(-longest // 4) * 4, MOST_TOKENS)


def _check_parent(config: Config, foundation: Foundation) -> dict[str, Any]:
    """`init_from` must be a finished-enough MLE run of the same model; says where SCST starts."""
    name = f"config.init_from={config.init_from!r}"
    parent, info = read_run(config.init_from)
    if parent.stage != "mle":
        raise UserError(
            f"{name} is a run of stage {parent.stage!r}; SCST starts from an MLE run "
            "(configs/mle.py)"
        )
    before, now = parent.model, config.model
    for key in ("projector", "prefix_tokens", "projector_hidden", "vision_layer", "prompt"):
        if getattr(before, key) != getattr(now, key):
            raise UserError(
                f"{name} was trained with model.{key}={getattr(before, key)!r}, but this "
                f"configuration says {getattr(now, key)!r}; set --config.model.{key}="
                f"{getattr(before, key)}"
            )
    for part, there in foundation.base.items():
        then = info.get("base", {}).get(part, {}).get("fingerprint")
        if then != there["fingerprint"]:
            what = "tokenizer" if part == "tokenizer" else f"base model {part!r}"
            raise UserError(
                f"{name} was trained with another {what} ({str(then)[:12]}) than this "
                f"configuration names ({there['fingerprint'][:12]}); set config.model to its own: "
                f"clip={before.clip!r}, lm={before.lm!r}"
            )
    step = resolve_step(config.init_from, "best")
    return {"run": str(config.init_from), "step": step, "stage": parent.stage}


def _reward(config: Config, split: Split) -> MixedReward:
    path = document_frequency_path(config.data.dir, config.data.train_split)
    if not path.exists():
        raise UserError(
            f"{path} is missing: CIDEr-D needs the document frequencies of the training "
            "references; prepare the dataset again with har_jax.prepare"
        )
    frequencies = DocumentFrequency.load(path)
    return mix.build(config.scst.reward, frequencies, split.references(), eos=config.scst.eos)
