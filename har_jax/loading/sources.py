"""What a captioner is loaded from: a run of `har_jax.train`, or Hugging Face directories.

    runs/scst                        a run: what it trained, upon the base weights that it names
    exported                         a LLaVA directory (`har_jax.export`), whole
    adapters                         a PEFT directory (`--format=peft`): adapters and projector
    encoder=DIR lm=DIR projector=DIR parts that lie apart

Each way gives the same `Source`, of which `load` makes a captioner and `loading/start.py` the
beginning of a training; no way reads flags or leaves a trace in the process.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.checkpoint import resolve_step
from har_jax.config import Config, DataConfig, ModelConfig
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import listed, shortened, typed
from har_jax.interchange import hf_dir, hub, llava, peft
from har_jax.interchange.safetensors_file import Tensor
from har_jax.interchange.table import Row
from har_jax.loading.blueprint import Blueprint, decoder_in
from har_jax.loading.identity import check_base
from har_jax.loading.parts import Parts, read_run_parts
from har_jax.loading.weights import laid_out, load_base, restore_trained
from har_jax.models.functional import Params, prefixed
from har_jax.models.sizes import Room
from har_jax.settings import build
from har_jax.sharding import Rules
from har_jax.training.run_dir import read_run

PathLike = str | os.PathLike[str]

DTYPES = ("float32", "bfloat16")


Own = Callable[[Blueprint, Mesh, Rules], Params]


@dataclasses.dataclass(frozen=True)
class Source:
    """What a captioner is made of, read but for weights: `load` makes one of it, and training
    begins with it (`loading/start.py`).

    Attributes:
      kind: "run", "llava", "peft" or "parts".
      name: of the directory, for people.
      config: its settings: a run's own; of others the model section, which names the directories of
        encoder and decoder, and the length of captions.
      own: the parameters that lie in it, and not in these directories.
      stored: the dtype to compute in by default; None: as `config` says.
    """

    kind: str
    name: str
    config: Config
    own: Own
    stored: str | None = None
    run: dict[str, Any] = dataclasses.field(default_factory=dict)  # run.json
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A captioner's parts and weights, before it is put together."""

    config: Config
    parts: Parts
    params: Params
    run: dict[str, Any] = dataclasses.field(default_factory=dict)  # run.json
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where parameters go, and as what."""

    mesh: Mesh
    rules: Rules
    dtype: str | None  # of all parameters and of the activations; None: as it is found
    dense: bool = False  # no kernel in 8 or 4 bits: adapters are to be added to them

    @classmethod
    def of(cls, mesh: Mesh, rules: Rules, dtype: Any, dense: bool = False) -> Placement:
        name = None if dtype is None else _dtype_name(dtype)
        if name not in (None, *DTYPES):
            raise UserError(
                f"dtype {name!r}{did_you_mean(str(name), DTYPES)}; allowed: {', '.join(DTYPES)}, "
                "or None for what the run or the files have"
            )
        return cls(mesh, rules, name, dense)

    def model(self, model: ModelConfig, found: str | None = None) -> ModelConfig:
        """A model section with all dtypes alike: the one asked for, else `found`, else as is."""
        dtype: Any = self.dtype or found
        if dtype is None:
            kept: Any = model.dense_frozen_dtype if self.dense else model.frozen_dtype
            return dataclasses.replace(model, frozen_dtype=kept)
        return dataclasses.replace(model, dtype=dtype, param_dtype=dtype, frozen_dtype=dtype)


def _dtype_name(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def read_source(source: PathLike | None, given: Mapping[str, Any], step: str | int) -> Source:
    """What `load_captioner` is called with, read but for the weights.

    Args:
      given: `encoder`, `lm`, `projector`, `adapter` and `prompt`, those that are not None.
      step: of a run.

    Raises:
      UserError: something is missing, or does not belong together.
    """
    if source is None:
        missing = [name for name in ("encoder", "lm", "projector") if name not in given]
        if missing:
            raise UserError(
                f"load_captioner lacks {', '.join(missing)}; give a run or an exported directory, "
                "load_captioner(DIR), or all of encoder=DIR, lm=DIR and projector=DIR"
            )
        return _of_directories(**given)
    name, path = located(source)
    kind = kind_of(path)
    what, *foreign = {
        "run": ("a run", "projector", "adapter", "prompt"),
        "llava": ("a LLaVA directory", "projector", "adapter", "encoder", "lm"),
        "peft": ("a PEFT directory", "projector", "adapter"),
    }[kind]
    if wrong := [name for name in foreign if name in given]:
        raise UserError(
            f"{os.fspath(source)} is {what}, which has its own {', '.join(wrong)}; leave that out"
        )
    if kind == "run":
        return _of_run(source, step, **given)
    if kind == "llava":
        return _of_llava(name, path, **given)
    return dataclasses.replace(_of_peft(path, **given), name=name)


def load(source: Source, place: Placement) -> Loaded:
    """A captioner of a source, its weights in their shards.

    Raises:
      UserError: the weights do not fit, or are not those that a run was trained upon.
    """
    config = dataclasses.replace(
        source.config, model=place.model(source.config.model, source.stored)
    )
    parts = read_run_parts(config)
    blueprint, mesh, rules = parts.blueprint, place.mesh, place.rules
    if source.kind == "llava":  # all at once, so that all that is wrong with it is told
        path = blueprint.decoder_dir
        params = llava.load_llava(blueprint.structure, blueprint.config, path, mesh, rules)
    else:
        of_run = source.kind == "run"
        if of_run:
            check_base(source.run, parts.identity, source.name)
        trained = of_run and blueprint.model.trains_base
        params = load_base(blueprint, mesh, rules, lm=not trained)
        params |= source.own(blueprint, mesh, rules)
    return Loaded(config, parts, params, source.run, source.step)


def _of_run(
    run: PathLike, step: str | int, encoder: PathLike | None = None, lm: PathLike | None = None
) -> Source:
    """Of a run; `encoder` and `lm` say where its base weights are now, if they were moved."""
    config, info = read_run(run)
    moved = {k: os.fspath(v) for k, v in (("encoder", encoder), ("lm", lm)) if v is not None}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **moved))
    number = resolve_step(run, step)

    def own(blueprint: Blueprint, mesh: Mesh, rules: Rules) -> Params:
        return restore_trained(blueprint, run, number, mesh, rules)

    return Source("run", os.fspath(run), config, own, run=info, step=number)


def located(source: PathLike) -> tuple[str, pathlib.Path]:
    """The name of a source, that of a model of the hub with its commit; and its directory, which
    may not be there.

    Raises:
      UserError: the hub has no such model, or cannot be reached.
    """
    on_hub = hub.named(source)
    # `runs/mle` where there are `runs`, but no `mle` in it, is no matter of the hub.
    if on_hub is None or os.path.isdir(on_hub.repo.partition("/")[0]):
        return os.fspath(source), pathlib.Path(source)
    name = hub.pinned(source, f"there is no run directory {os.fspath(source)!r}")
    return name, hf_dir.resolve(name)


def _of_llava(name: str, path: pathlib.Path, prompt: str | None = None) -> Source:
    """Of a LLaVA directory whose decoder is of a family that we have; `name` is its name."""
    read, ours = llava.read_llava_config(path)
    if prompt is None:
        where = f"{path / 'config.json'}: har_jax: prompt"
        prompt = typed(ours.get("prompt", ""), str, where)
    generation = path / "generation_config.json"
    max_tokens = hf_dir.read_json(generation).get("max_new_tokens") if generation.exists() else None
    max_tokens = _max_tokens(max_tokens, generation)
    model = ModelConfig(
        encoder=name,
        lm=name,
        vision_layer=read.vision_layer,
        vision_tokens=read.vision_tokens,
        prompt=prompt,
    )

    def own(blueprint: Blueprint, mesh: Mesh, rules: Rules) -> Params:
        return llava.load_llava(blueprint.structure, read, path, mesh, rules, parts=("projector",))

    return Source("llava", name, _config(model, max_tokens), own, _stored_dtype(path))


def _of_directories(
    encoder: PathLike,
    lm: PathLike,
    projector: PathLike,
    *,
    adapter: PathLike | None = None,
    prompt: str | None = None,
) -> Source:
    """Of an encoder, a decoder, and a projector: that of a run, or one that was exported."""
    encoder, lm = hub.pinned(encoder), hub.pinned(lm)
    lm_dir = hf_dir.resolve(lm)
    projector = located(projector)[1]
    if adapter is not None:
        adapter = located(adapter)[1]
    run: PathLike | None = None
    if (pathlib.Path(projector) / "run.json").exists():
        run = projector
        trained = read_run(projector)[0]
        settings = {**dataclasses.asdict(trained.model), "max_tokens": trained.data.max_tokens}
        tensors = {}
    else:
        settings, tensors = peft.read_projector(projector)
    used = {key: settings[key] for key in peft.PROJECTOR_SETTINGS}
    where = os.fspath(pathlib.Path(projector) / peft.PROJECTOR_CONFIG)
    bases = {"encoder": encoder, "lm": lm}
    model = build(ModelConfig, {**bases, **used}, where)
    max_tokens = _max_tokens(settings.get("max_tokens"), where)
    if prompt is not None:
        model = dataclasses.replace(model, prompt=prompt)
    adapters: Mapping[str, tuple[Row, Tensor]] = {}
    if adapter is not None:
        config, adapters = peft.read_adapters(adapter, decoder_in(lm_dir))
        model = dataclasses.replace(model, lora=config)
    rows = {row.hf: row for row in peft.PROJECTOR_TABLE}
    ours = [(rows.get(name, Row(name, name, "->")), tensor) for name, tensor in tensors.items()]
    found = {f"projector.{row.path}": (row, tensor) for row, tensor in ours}
    found |= prefixed(adapters, "lm")

    def own(blueprint: Blueprint, mesh: Mesh, rules: Rules) -> Params:
        of_run = {} if run is None else _projector_of_run(run, blueprint, mesh, rules)
        # Files know layers one by one.
        apart = blueprint.changed(dataclasses.replace(blueprint.model, scan_layers=False))
        placed = of_run | _placed(found, apart, mesh, rules, adapter or projector)
        return laid_out(placed, blueprint, mesh, rules) if adapters else placed

    kind, name = ("parts", projector) if adapter is None else ("peft", adapter)
    return Source(kind, os.fspath(name), _config(model, max_tokens), own, _stored_dtype(lm_dir))


def _of_peft(
    directory: PathLike,
    encoder: PathLike | None = None,
    lm: PathLike | None = None,
    prompt: str | None = None,
) -> Source:
    """Of a directory that `har_jax.export --format=peft` wrote."""
    settings = peft.read_projector(directory)[0]
    adapters = peft.adapter_settings(pathlib.Path(directory))
    base, revision = (adapters.get(key) for key in ("base_model_name_or_path", "revision"))
    if base and revision and hub.named(base):
        base = f"{base}@{revision}"
    encoder, lm = encoder or settings.get("encoder"), lm or base
    if not encoder or not lm:
        raise UserError(
            f"{os.fspath(directory)} does not say where its encoder and its decoder are; give "
            "encoder=DIR and lm=DIR"
        )
    return _of_directories(encoder, lm, directory, adapter=directory, prompt=prompt)


def kind_of(source: PathLike) -> str:
    """`"run"`, `"llava"` or `"peft"`; a directory of another model is a `UserError`."""
    path = pathlib.Path(source)
    if (path / peft.ADAPTER_CONFIG).exists():
        return "peft"
    if (path / "run.json").exists() or not (path / "config.json").exists():
        return "run"  # or nothing at all, which `read_run` explains
    model_type = hf_dir.read_json(path / "config.json").get("model_type")
    if model_type in (None, "llava"):
        return model_type or "run"
    raise UserError(
        f"{path} holds a model of type {shortened(repr(model_type))}, which alone is no captioner; "
        "give a run of har_jax.train, a LLaVA directory, or encoder=DIR, lm=DIR and projector=DIR"
    )


def _max_tokens(value: Any, where: object) -> int | None:
    return typed(value, Room | None, f"{where}: the length of captions")


def _config(model: ModelConfig, max_tokens: int | None) -> Config:
    data = DataConfig(max_tokens=max_tokens or DataConfig.max_tokens)
    return Config(model=model, data=data)


def _stored_dtype(directory: pathlib.Path) -> str:
    """What to compute in by default: bfloat16 if most of the file is in it, else float32."""
    tensors, _ = hf_dir.open_weights(directory)
    if not tensors:
        raise UserError(f"the weights in {directory} hold no tensor; copy or download them again")
    largest = max(tensors.values(), key=lambda tensor: tensor.nbytes)
    return "bfloat16" if largest.dtype_name == "BF16" else "float32"


def _projector_of_run(run: PathLike, blueprint: Blueprint, mesh: Mesh, rules: Rules) -> Params:
    """The projector alone, of the best step; what else the run trained is left where it is."""
    then = read_run(run)[0].model
    if then.trains_base or then.lora.rank:
        raise UserError(
            f"projector={os.fspath(run)!r} is a run that trained its decoder too, and its "
            f"projector fits no other; load the run itself, load_captioner({os.fspath(run)!r})"
        )
    return restore_trained(blueprint, run, resolve_step(run, "best"), mesh, rules)


def _placed(
    found: Mapping[str, tuple[Row, Tensor]],
    blueprint: Blueprint,
    mesh: Mesh,
    rules: Rules,
    source: PathLike,
) -> Params:
    """Small tensors of files, in their shards; `UserError` where one has not the model's shape."""
    shapes, shardings = blueprint.shapes, blueprint.shardings(mesh, rules)
    wrong = [name for name in found if name not in shapes]
    wrong += [
        f"{name} has the dtype {tensor.dtype_name}, which is no float"
        for name, (_, tensor) in found.items()
        if not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    wrong += [
        f"{name} is {list(tensor.shape)} in the file and {list(row.hf_shape(shapes[name].shape))} "
        "in the model"
        for name, (row, tensor) in found.items()
        if name in shapes and tensor.shape != row.hf_shape(shapes[name].shape)
    ]
    if wrong:
        raise UserError(
            f"{os.fspath(source)} does not fit these models: {listed(wrong, '; ')}; give the "
            "directories that it was trained upon"
        )
    placed = {}
    for name, (row, tensor) in found.items():
        shape, dtype = shapes[name].shape, shapes[name].dtype
        value = np.asarray(row.read(tensor.map(), shape), dtype)
        if np.isnan(value).any():
            raise UserError(
                f"{tensor.file}: tensor {shortened(repr(tensor.name))} holds NaNs, so the model "
                "would answer nothing else; copy or download it again"
            )
        placed[name] = jax.make_array_from_callback(
            shape, shardings[name], lambda index, value=value: value[index]
        )
    return placed
