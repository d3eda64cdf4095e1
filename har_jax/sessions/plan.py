"""A session checked before it starts: every file that a configuration names is read and found to
fit the others, and no device is touched, so a mistake costs a second and not a pod's start-up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import pathlib
from collections.abc import Iterator
from typing import Any

from har_jax.checkpoint import resolve_step
from har_jax.config import Config
from har_jax.data.dataset import Split, open_split, words_of
from har_jax.data.features.cache import FeatureCache
from har_jax.data.overlap import ImageSet, image_set, shared
from har_jax.data.subset import take
from har_jax.data.tally import tokens_needed
from har_jax.errors import UserError
from har_jax.evaluation.leak import trained_on
from har_jax.loading.identity import check_base
from har_jax.loading.parts import Parts, read_parts
from har_jax.loading.pins import pin
from har_jax.loading.sources import Source
from har_jax.loading.start import settled
from har_jax.objectives.policy_gradient import find_objective
from har_jax.rewards.mix import MixedReward
from har_jax.scorers.clip import ClipFiles
from har_jax.scorers.split_reward import split_reward
from har_jax.text.words import Words
from har_jax.training.run_dir import read_run
from har_jax.training.trackers import names_of

log = logging.getLogger(__name__)


@dataclasses.dataclass
class SessionPlan:
    """A session whose files have been read and found to fit together.

    Attributes:
      parent: the run that this one starts from: {"run", "step", "stage"}.
      start: what it starts from, but for SCST from a run.
      trained_on: the images that this run and those before it are trained on.
      data: what `run.json` says of the training data.
      words: what rewards and validation count of captions.
      hub: what the names of the hub mean that were given: their commits.
      spec: the file or preset that the configuration is of, as `--config` names it; "" of none.
    """

    config: Config
    workdir: pathlib.Path
    parts: Parts
    train_split: Split
    val_split: Split | None
    reward: MixedReward | None
    parent: dict[str, Any] | None
    start: Source | None
    trained_on: list[ImageSet]
    data: dict[str, Any]
    words: Words
    hub: dict[str, str]
    spec: str = ""

    @property
    def reward_signature(self) -> str | None:
        """What the rewards and their baseline depend on; None in MLE."""
        if self.reward is None:
            return None
        scst = self.config.scst
        baseline = f"{scst.baseline},K={scst.samples}"
        other = "" if scst.objective == "policy_gradient" else f"+objective[{scst.objective}]"
        return f"{self.reward.signature}+baseline[{baseline}]{other}"


def plan_session(config: Config, workdir: str | pathlib.Path, spec: str = "") -> SessionPlan:
    """Checks a configuration against the files that it names; raises `UserError`. Where it came
    from, `spec`, is only noted down."""
    names_of(config.trackers)
    # 1. The models: directories, tokenizer, preprocessing, hashes.
    config, names = pin(config, workdir, strict=False)
    config, start = settled(config)  # which may contradict what is not there
    config, others = pin(config, workdir)
    data = config.data
    parts = read_parts(config.model, FeatureCache(data.features) if data.features else None)
    _ = parts.identity, parts.blueprint.structure  # adapters' names are matched with the decoder's
    # 2. The data.
    whole = open_split(data.dir, data.train_split)
    words = words_of(data.dir, data.words)
    train_split = take(whole, fraction=data.fraction, shots=data.shots, seed=data.subset_seed)
    if not len(train_split):
        raise UserError(f"{data.dir!r}: its split {data.train_split!r} is empty")
    val_split = open_split(data.dir, data.val_split) if data.val_split else None
    if val_split is not None and not len(val_split):
        raise UserError(
            f"{data.dir!r}: its split {data.val_split!r} is empty; --config.data.val_split= is none"
        )
    for split in (train_split, val_split):
        if parts.features is not None and split is not None:
            parts.features.of(split)  # refuses a cache without these images
    if config.eval.clip_score:  # only validation and evaluation load it, after all the steps
        with _naming("config.eval.clip_score"):
            ClipFiles(config.eval.clip_score)
    if data.max_tokens == 0:
        captions = [caption for those in train_split.captions for caption in those]
        needed = tokens_needed([len(ids) for ids in parts.tokenizer.encode_batch(captions)])
        config = dataclasses.replace(config, data=dataclasses.replace(data, max_tokens=needed))
    parts.blueprint.config.check_places(config.data.max_tokens)
    if config.batch_size > len(train_split):
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(train_split)} images of "
            f"{data.dir!r} {data.train_split!r}; lower it"
        )
    # 3. What this run builds upon, and that no image is scored which was trained on.
    scst = config.stage == "scst"
    if start is not None:
        parent = _check_start(start, parts)
    else:
        parent = _check_parent(config, parts) if scst else None
    own = image_set(train_split)
    trained = [*(_trained_before(config) if parent else []), own]
    if val_split is not None:
        _check_apart(config, trained, val_split)
    # 4. What SCST maximises.
    reward = None
    if scst:
        find_objective(config.scst.objective)
        told: dict[str, Any] = {"eos": config.scst.eos, "clip": config.scst.reward_clip}
        told |= {"batch_size": config.eval.batch_size}
        reward = split_reward(config.scst.reward, train_split, words, **told)
    described = {"path": data.dir, "split": data.train_split, "images": len(train_split)}
    described |= {"of": len(whole), "ids": own.ids_of, "fingerprint": own.fingerprint}
    folder = pathlib.Path(workdir)
    return SessionPlan(
        config,
        folder,
        parts,
        train_split,
        val_split,
        reward,
        parent,
        start,
        trained,
        described,
        words,
        names | others,
        spec,
    )


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Puts the setting's name before what is wrong with what it names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _trained_before(config: Config) -> list[ImageSet]:
    """What the run that SCST starts from was trained on."""
    before = trained_on(config.init_from)
    if before is None:
        unknown = "what %s was trained on is not known: overlap with it will not be found"
        log.warning(unknown, config.init_from)
    return before or []


def _check_apart(config: Config, trained: list[ImageSet], val_split: Split) -> None:
    """Checkpoints are chosen on the validation split: it must hold other images."""
    data = config.data
    if data.val_split == data.train_split:  # said in so many words
        log.warning("config.data.val_split=%r is what is trained on", data.val_split)
        return
    both = shared(val_split, trained)
    if both.ids:
        source = f" or {config.init_from}" if config.init_from else ""
        raise UserError(
            f"{data.dir!r}: {both} of {data.val_split!r} are also in what {data.train_split!r}"
            f"{source} trains on; prepare the dataset again (splits must not share images)"
        )


def _check_start(start: Source, parts: Parts) -> dict[str, Any] | None:
    """Where a run starts from, if that is a run: with the very base models, which are looked at.
    What anything else was trained on is not known."""
    if start.kind != "run":
        log.warning(
            "what %s was trained on is not known: overlap with it will not be found", start.name
        )
        return None
    check_base(start.run, parts.identity, start.name)
    return {"run": start.name, "step": start.step, "stage": start.config.stage}


def _check_parent(config: Config, parts: Parts) -> dict[str, Any]:
    """`init_from` must be a finished-enough MLE run of the same model; says where SCST starts."""
    name = f"config.init_from={config.init_from!r}"
    parent, info = read_run(config.init_from)
    if parent.stage != "mle":
        needed = "SCST starts from an MLE run (configs/mle.py)"
        raise UserError(f"{name} is a run of stage {parent.stage!r}; {needed}")
    before, now = parent.model, config.model
    keys = ["projector", "prefix_tokens", "projector_hidden", "vision_layer", "vision_tokens"]
    keys += ["prompt"]
    keys += ["lora.rank", "lora.alpha", "lora.targets"] if before.lora.rank or now.lora.rank else []
    for key in keys:
        then, value = (operator.attrgetter(key)(model) for model in (before, now))
        if then != value:
            raise UserError(
                f"{name} was trained with model.{key}={then!r}, but this configuration says "
                f"{value!r}; set --config.model.{key}={then}"
            )
    for part, there in parts.identity.items():
        then = info.get("base", {}).get(part, {}).get("fingerprint")
        if then != there["fingerprint"]:
            what = "tokenizer" if part == "tokenizer" else f"base model {part!r}"
            raise UserError(
                f"{name} was trained with another {what} ({str(then)[:12]}) than this "
                f"configuration names ({there['fingerprint'][:12]}); set config.model to its own: "
                f"encoder={before.encoder!r}, lm={before.lm!r}"
            )
    step = resolve_step(config.init_from, "best")
    return {"run": str(config.init_from), "step": step, "stage": parent.stage}
