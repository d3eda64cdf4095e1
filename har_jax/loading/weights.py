"""A blueprint's parameters: from files straight into shards, or born there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from har_jax.checkpoint import Checkpoints
from har_jax.interchange import hf_dir, llava
from har_jax.interchange.families.registry import family_of, load_encoder
from har_jax.loading.blueprint import Blueprint
from har_jax.models import lora
from har_jax.models.captioner import new_projector
from har_jax.models.functional import Params, part, prefixed, split
from har_jax.models.layouts import convert
from har_jax.sharding import RULES, Rules
from har_jax.training.run_dir import read_run


def load_base(
    blueprint: Blueprint, mesh: Mesh, rules: Rules = RULES, *, vision: bool = True, lm: bool = True
) -> Params:
    """The weights of encoder and decoder, as their directories have them; of a LLaVA's those of the
    network that is meant.

    Args:
      vision, lm: which of them; a blueprint without a tower has none to load.
    """
    config = blueprint.config
    sources: dict[str, tuple[Callable[..., Params], object, Path]] = {}
    if vision and config.vision is not None and blueprint.encoder_dir is not None:
        sources["vision"] = (load_encoder, config.vision, blueprint.encoder_dir)
    if lm:
        sources["lm"] = (family_of(config.lm).load_params, config.lm, blueprint.decoder_dir)
    params: Params = {}
    for name, (load, network, directory) in sources.items():
        if hf_dir.is_llava(directory):
            own = llava.read_llava_config(directory)[0]
            of = (blueprint.structure, own, directory, mesh, rules)
            params |= llava.load_llava(*of, parts=(name,))
            continue
        shapes, axes = part(blueprint.shapes, name), part(blueprint.logical_axes, name)
        shapes = {n: x for n, x in shapes.items() if not lora.is_factor(n)}
        found = load(shapes, axes, network, directory, mesh=mesh, rules=rules)
        params |= prefixed(found, name)
    return params


def load_frozen(blueprint: Blueprint, mesh: Mesh, rules: Rules = RULES) -> Params:
    """What does not learn: the tower, and the decoder where only adapters or projector do."""
    return load_base(blueprint, mesh, rules, lm=not blueprint.model.trains_base)


def new_trained(
    blueprint: Blueprint,
    seed: int,
    mesh: Mesh,
    rules: Rules = RULES,
    *,
    known: Params | None = None,
) -> Params:
    """What learns, before the first step of stage 1: a fresh projector, fresh adapters, and the
    base decoder where it learns itself. Each is born in its shards.

    Args:
      known: what is there already, of one of these or of all.
    """
    shardings = blueprint.shardings(mesh, rules)
    key = jax.random.key(seed)

    def projector(key: jax.Array) -> Params:
        dtype = jnp.dtype(blueprint.model.param_dtype)
        made = new_projector(blueprint.config, rngs=nnx.Rngs(key), dtype=dtype)
        return prefixed(split(made)[1], "projector")

    def adapters(key: jax.Array) -> Params:  # what is not returned is never computed
        params = split(blueprint.build(nnx.Rngs(key)))[1]
        return {name: x for name, x in params.items() if lora.is_factor(name)}

    trained: Params = dict(known or {})
    for make in (projector, adapters):
        names = jax.eval_shape(make, key)
        if names.keys() <= trained.keys():
            continue
        out = {name: shardings[name] for name in names}
        trained |= jax.jit(make, out_shardings=out)(key)
    if blueprint.model.trains_base and not any(name.startswith("lm.") for name in trained):
        trained |= load_base(blueprint, mesh, rules, vision=False)
    return trained


def restore_trained(
    blueprint: Blueprint, run: str | os.PathLike[str], step: int, mesh: Mesh, rules: Rules = RULES
) -> Params:
    """What a run trained, in the layout of the blueprint, whatever that of the run is. If that was
    its projector alone, it is the projector, whatever the blueprint trains."""
    then = read_run(run)[0].model
    if not then.trains_base and not then.lora.rank:
        alone = dataclasses.replace(blueprint.model, train_lm=False, lora=then.lora)
        blueprint = blueprint.changed(alone)
    layout = dataclasses.replace(blueprint.model, scan_layers=then.scan_layers)
    checkpoints = Checkpoints(run, read_only=True)
    like = blueprint.changed(layout).abstract_trained(mesh, rules)
    saved = checkpoints.restore_params(step, like)
    checkpoints.close()
    return laid_out(saved, blueprint, mesh, rules)


def laid_out(params: Params, blueprint: Blueprint, mesh: Mesh, rules: Rules = RULES) -> Params:
    """All that a blueprint trains, in its layout."""
    wanted = blueprint.abstract_trained(mesh, rules)
    if wanted.keys() == params.keys():
        return params
    shardings = {name: x.sharding for name, x in wanted.items()}
    return jax.jit(lambda params: convert(params, wanted), out_shardings=shardings)(params)
