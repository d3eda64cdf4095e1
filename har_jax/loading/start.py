"""What a training begins with: `config.init_from` is anything that `load_captioner` takes.

A configuration leaves out what its source says (encoder, decoder, prompt, how the projector reads),
and `settled` fills it in; what both say must agree. What learns begins as the source has it, and
what it has not (adapters, say) is born anew; the rest is frozen as the configuration says.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from har_jax.config import Config, LoraConfig, ModelConfig
from har_jax.errors import UserError
from har_jax.interchange import peft
from har_jax.loading.sources import Source, kind_of, located, read_source
from har_jax.training.run_dir import read_run

log = logging.getLogger(__name__)

_BASES = ("encoder", "lm")
_READS = tuple(key for key in peft.PROJECTOR_SETTINGS if key != "prompt")


def settled(config: Config) -> tuple[Config, Source | None]:
    """A configuration with what its source says, and the source; none without `init_from`, and for
    SCST from a run, which `sessions.plan` looks at itself.

    No weights are read.

    Raises:
      UserError: the source is none, lacks something, or contradicts the configuration.
    """
    if not config.init_from:
        return config, None
    given = {key: getattr(config.model, key) for key in _BASES if getattr(config.model, key)}
    source, refines = _source(config.init_from, given), False
    if source is None:  # SCST, or a training that goes on
        refines = config.stage == "scst"
        if refines and len(given) == len(_BASES):  # the model section is whole: no word from us
            return config, None
        source = _of_run(config.init_from, given, others=not refines)
    name = f"config.init_from={config.init_from!r}"
    filled = dataclasses.replace(config, model=_filled(config.model, source, name))
    return filled, None if refines else source


def _source(init_from: str, given: dict[str, str]) -> Source | None:
    """None of a run."""
    path = located(init_from)[1]
    if (path / peft.PROJECTOR).exists() and not (path / peft.ADAPTER_CONFIG).exists():
        if missing := [key for key in _BASES if key not in given]:
            raise UserError(
                f"config.init_from={init_from!r} is a projector alone; say what it stands between: "
                + " ".join(f"--config.model.{key}=DIR" for key in missing)
            )
        return read_source(None, {**given, "projector": init_from}, "best")
    kind = kind_of(path)
    if kind == "run":
        return None
    if kind == "llava":
        for key, named in given.items():
            if not _same(named, init_from):
                raise UserError(
                    f"config.init_from={init_from!r} is a LLaVA directory, which has its own {key},"
                    f" but config.model.{key} is {named!r}; leave that out: --config.model.{key}="
                )
        given = {}
    return read_source(init_from, given, "best")


def _of_run(run: str, given: dict[str, str], *, others: bool) -> Source:
    """A run with its own base models, or, if it trained its projector alone, with `others`."""
    then = read_run(run)[0].model
    alone = others and not then.trains_base and not then.lora.rank
    bases = {key: getattr(then, key) for key in _BASES} | given
    if alone and any(not _same(bases[key], getattr(then, key)) for key in _BASES):
        log.warning("of %s its projector is taken, upon other base models than its own", run)
        return read_source(None, {**bases, "projector": run}, "best")
    return read_source(run, given, "best")


def _same(a: str, b: str) -> bool:
    return a == b or os.path.realpath(a) == os.path.realpath(b)


def _filled(model: ModelConfig, source: Source, name: str) -> ModelConfig:
    """The model section with what the source says.

    Raises:
      UserError: it says something else.
    """
    own, usual = source.config.model, ModelConfig()
    found: dict[str, Any] = {key: getattr(model, key) or getattr(own, key) for key in _BASES}
    found["prompt"] = model.prompt or own.prompt  # a text may be another
    for key in _READS:
        value, theirs = getattr(model, key), getattr(own, key)
        if value not in (theirs, getattr(usual, key)):
            raise UserError(
                f"{name} has model.{key}={theirs!r}, but this configuration says {value!r}; leave "
                f"it out, or set --config.model.{key}={theirs}"
            )
        found[key] = theirs
    if own.lora.rank:
        lora = model.lora
        if lora.targets == LoraConfig.targets:  # which linears have adapters the files say
            lora = dataclasses.replace(lora, targets=own.lora.targets)
        if model.lora != LoraConfig() and lora != own.lora:
            raise UserError(
                f"{name} has adapters of rank {own.lora.rank}, alpha {own.lora.alpha:g} on "
                f"{own.lora.targets!r}, but config.model.lora is of rank {model.lora.rank}, alpha "
                f"{model.lora.alpha:g} on {model.lora.targets!r}; leave config.model.lora out"
            )
        found["lora"] = own.lora
    filled = dataclasses.replace(model, **found)
    if source.kind == "run" and own.trains_base and not filled.trains_base:
        raise UserError(
            f"{name} trained its decoder whole, and this configuration would freeze the decoder "
            "that it began with; export it (python -m har_jax.export) and begin with that "
            "directory, or set --config.model.train_lm=true --config.model.lora.rank=0"
        )
    return filled
