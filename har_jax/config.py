"""The configuration of a run: frozen dataclasses, filled from `configs/*.py` and checked at once.

`load(path, overrides)` executes a config file (`get_config(arg)` returning an
`ml_collections.ConfigDict`), applies `--config.KEY=VALUE` overrides, and turns the result into a
`Config`. Unknown keys, wrong types and contradictions are `UserError`s, found before any device is
touched.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from har_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class DataConfig:
    dir: str = ""  # a prepared dataset (python -m har_jax.prepare)
    train_split: str = "train"
    val_split: str = "val"  # "" for none
    fraction: float = 1.0  # of the training images: a fixed subset, inside every larger one
    shots: int = 0  # the same as a number of images; 0: all
    subset_seed: int = 0  # draws other subsets
    captions_per_image: int = 5  # R of MLE: more are drawn from, fewer are padded and masked
    max_tokens: int = 32  # T: tokens of a caption, EOS included; 0: what the training captions need
    cache_images: bool = True  # keep decoded pixels in memory where they fit
    features: str = ""  # a feature cache (python -m har_jax.prepare features); "": encode images


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int = 0  # r of the adapters; 0: none
    alpha: float = 32.0  # an adapter's product counts alpha / rank
    targets: str = "attn.(q|k|v|o)"  # regex: the ends of the names of the decoder's linears


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """How a captioner computes, whatever its weights: `models.captioner.CaptionerConfig` is this and
    the shapes of its parts, so that each of these settings is written here alone."""

    projector: Literal["patch", "pooled"] = "patch"
    prefix_tokens: int = 10  # of a pooled projector
    projector_hidden: int = 0  # 0: the decoder's width
    vision_layer: int = -2  # layer whose patch tokens are read
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes
    scan_layers: bool = False  # the decoder's layers in one lax.scan: compiled once, not L times
    dtype: Literal["float32", "bfloat16"] = "float32"  # activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(CaptionerSettings):
    clip: str = ""  # HF directory of the frozen encoder
    lm: str = ""  # HF directory of the decoder, its tokenizer beside it
    prompt: str = ""  # text after the image, before the caption
    train_lm: bool = True  # False: only the projector learns
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # trained parameters
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # frozen parameters
    lora: LoraConfig = LoraConfig()  # with a rank, the decoder itself is frozen

    @property
    def trains_base(self) -> bool:
        """Whether the decoder's own weights learn, and not only the projector or adapters."""
        return self.train_lm and not self.lora.rank


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon", "adafactor", "sgd"] = "adamw"
    lr: float = 1e-4
    projector_lr_factor: float = 1.0  # the projector starts from nothing; the decoder does not
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    final_lr_factor: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0  # of the global gradient; 0: off


@dataclasses.dataclass(frozen=True)
class ScstConfig:
    samples: int = 5  # K per image
    baseline: Literal["greedy", "leave_one_out", "both"] = "greedy"  # both: the mean of the two
    objective: str = "policy_gradient"  # or package.module:function, see objectives/registry.py
    temperature: float = 1.0  # of the samples, in the rollout and in the update
    reward: str = "cider_d"  # a weighted sum, "cider_d + 0.5*bleu": see har_jax/rewards/mix.py
    reward_clip: str = ""  # HF directory of the CLIP behind the reward `clip_score`
    eos: bool = True  # CIDEr-D counts EOS as a word
    doctor: Literal["on", "warn", "off"] = "on"  # before the first step: har_jax/sessions/doctor.py


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = 0  # steps between validations; 0: only at the end
    images: int = 0  # of the validation split; 0: all
    batch_size: int = 64
    clip_score: str = ""  # HF directory of the independent CLIP that scores


GuardAction = Literal["off", "warn", "stop", "rollback"]


@dataclasses.dataclass(frozen=True)
class GuardsConfig:
    """What SCST watches while it runs, and what it does then: see har_jax/training/guards.py."""

    bad_end: GuardAction = "warn"  # captions that break off, as in "a man with a"
    bad_end_rise: float = 0.15  # of their rate, above that at the start
    repetition: GuardAction = "warn"  # bigrams that stood in the caption before
    repetition_rise: float = 0.15  # of their rate, above that at the start
    length: GuardAction = "warn"  # tokens of a caption
    length_drift: float = 0.5  # relative; beyond both the references and the start
    entropy: GuardAction = "warn"  # of the policy
    entropy_floor: float = 0.03  # nats per token
    reward: GuardAction = "warn"  # of the samples
    reward_drop: float = 0.5  # relative to the start
    kl: GuardAction = "off"  # to the MLE policy, whose trained parameters are kept in memory for it
    kl_limit: float = 2.0  # nats per token
    clip: GuardAction = "off"  # CIDEr up while CLIPScore falls, of the validation captions
    clip_drop: float = 0.02  # of CLIPScore, below that at the start
    window: int = 3  # logs that each figure is averaged over
    patience: int = 2  # averages beyond the limit, one after the other, before anything is done
    rollback_lr_factor: float = 0.5  # of the learning rate, after each roll-back
    max_rollbacks: int = 3  # the next one stops the run


@dataclasses.dataclass(frozen=True)
class Config:
    stage: Literal["mle", "scst"] = "mle"
    seed: int = 0
    steps: int = 1000
    batch_size: int = 32  # images, over all devices
    init_from: str = ""  # SCST: the MLE run to start from
    log_every: int = 10
    checkpoint_every: int = 500
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    scst: ScstConfig = ScstConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    guards: GuardsConfig = GuardsConfig()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From nested plain values; every key is known, every value of its field's type."""
        config = _build(cls, values, "config")
        check(config)
        return config


def defaults(stage: str) -> Any:
    """All settings at their defaults, as the `ConfigDict` that a config file changes."""
    from ml_collections import ConfigDict

    return ConfigDict(Config(stage=typing.cast(Any, stage)).to_dict())


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Config:
    """`configs/scst.py:tiny` with overrides such as `{"optim.lr": "1e-5"}`."""
    path, _, arg = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(
            f"--config={spec}: there is no file {path!r}; give a config file such as "
            "configs/mle.py:tiny or configs/scst.py:tiny"
        )
    if file.suffix != ".py":
        raise UserError(f"--config={spec}: {path!r} is not a Python file (*.py)")
    module_spec = importlib.util.spec_from_file_location(f"har_jax_config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={spec}: {file} is not valid Python: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={spec}: {file} has no function get_config(preset)")
    values = module.get_config(arg) if arg else module.get_config()
    values = values.to_dict() if hasattr(values, "to_dict") else dict(values)
    for key, text in (overrides or {}).items():
        _override(values, key, text)
    return Config.from_dict(values)


def pick_preset(presets: Mapping[str, Any], name: str, file: str) -> Any:
    """A config file's preset by name; an unknown one is an error that lists those there are."""
    if name not in presets:
        raise UserError(
            f"--config={file}:{name}: no such preset{did_you_mean(name, presets)}; "
            f"{file} has {', '.join(presets)}"
        )
    return presets[name]


def check(config: Config) -> None:
    """Contradictions that need neither a device nor a file to be seen."""

    def positive(name: str, value: float) -> None:
        if not value > 0:
            raise UserError(f"config.{name} is {value}; it must be above 0")

    for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
        positive(name, getattr(config, name))
    if config.data.max_tokens != 0:
        positive("data.max_tokens", config.data.max_tokens)
    positive("data.captions_per_image", config.data.captions_per_image)
    positive("eval.batch_size", config.eval.batch_size)
    positive("scst.samples", config.scst.samples)
    positive("scst.temperature", config.scst.temperature)
    for name in ("bad_end_rise", "repetition_rise", "length_drift", "entropy_floor", "kl_limit"):
        positive(f"guards.{name}", getattr(config.guards, name))
    for name in ("clip_drop", "window", "patience"):
        positive(f"guards.{name}", getattr(config.guards, name))
    for name in ("reward_drop", "rollback_lr_factor"):
        if not 0 < getattr(config.guards, name) <= 1:
            value = getattr(config.guards, name)
            raise UserError(f"config.guards.{name} is {value}; it must be above 0 and at most 1")
    if config.guards.max_rollbacks < 0:
        raise UserError(
            f"config.guards.max_rollbacks is {config.guards.max_rollbacks}; it must be 0 or more"
        )
    if not (config.optim.lr >= 0 and math.isfinite(config.optim.lr)):
        raise UserError(f"config.optim.lr is {config.optim.lr}; it must be a finite number >= 0")
    _check_lora(config.model.lora)
    for name in ("data.dir", "model.clip", "model.lm"):
        section, field = name.split(".")
        if name == "model.clip" and config.data.features:
            continue  # imported features have no encoder
        if not getattr(getattr(config, section), field):
            raise UserError(f"config.{name} is not set; give a directory: --config.{name}=DIR")
    if config.stage == "scst":
        if not config.init_from:
            raise UserError(
                "config.init_from is not set: SCST refines an MLE run; give its directory: "
                "--config.init_from=runs/mle"
            )
        if config.scst.baseline != "greedy" and config.scst.samples < 2:
            raise UserError(
                f"config.scst.baseline={config.scst.baseline!r} needs config.scst.samples >= 2, "
                f"got {config.scst.samples}"
            )
    elif config.init_from:
        raise UserError(
            f"config.init_from={config.init_from!r} belongs to SCST, but config.stage is 'mle'; "
            "use --config=configs/scst.py, or leave it out"
        )


def _check_lora(lora: LoraConfig) -> None:
    if lora.rank < 0:
        raise UserError(f"config.model.lora.rank is {lora.rank}; it must be 0 (no LoRA) or above")
    if not (lora.alpha > 0 and math.isfinite(lora.alpha)):
        raise UserError(f"config.model.lora.alpha is {lora.alpha}; it must be a number above 0")
    try:
        re.compile(lora.targets)
    except re.error as error:
        raise UserError(
            f"config.model.lora.targets={lora.targets!r} is no regular expression ({error}); give "
            "one such as 'attn.(q|k|v|o)' or '(attn.(q|v)|mlp.down)'"
        ) from None


def check_devices(config: Config, n_devices: int) -> None:
    """What the mesh must divide."""
    from har_jax.sharding import resolve_mesh_shape

    mesh = config.mesh
    data, fsdp, tensor = resolve_mesh_shape((mesh.data, mesh.fsdp, mesh.tensor), n_devices)
    for name, size in (
        ("batch_size", config.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % n_devices:
            raise UserError(
                f"config.{name}={size} cannot be divided over {n_devices} devices (mesh data={data}"
                f" x fsdp={fsdp} x tensor={tensor}; rewards are split over all of them); use a "
                f"multiple of {n_devices}, such as {math.ceil(size / n_devices) * n_devices}"
            )


def _override(values: dict[str, Any], key: str, text: str) -> None:
    """Sets one `a.b=text`. The text is read as a Python literal where it is one."""
    *sections, leaf = key.split(".")
    target: Any = values
    for depth, section in enumerate((*sections, leaf)):
        if not isinstance(target, dict) or section not in target:
            raise _unknown_key(
                ".".join(("config", *sections, leaf)[: depth + 2]), _all_keys(values)
            )
        if depth < len(sections):
            target = target[section]
    if isinstance(target[leaf], Mapping):
        raise UserError(
            f"--config.{key} names a section; set one of its keys: "
            + ", ".join(f"config.{key}.{k}" for k in target[leaf])
        )
    target[leaf] = text if isinstance(target[leaf], str) else _literal(text)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _all_keys(values: Mapping[str, Any], prefix: str = "config") -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(f"{prefix}.{key}")
        if isinstance(value, Mapping):
            keys += _all_keys(value, f"{prefix}.{key}")
    return keys


_ALIASES = {
    "learning_rate": "config.optim.lr",
    "bs": "config.batch_size",
    "num_steps": "config.steps",
    "max_length": "config.data.max_tokens",
    "dataset": "config.data.dir",
}
"""What people coming from elsewhere type."""


def _unknown_key(key: str, known: Sequence[str]) -> UserError:
    parent, _, leaf = key.rpartition(".")
    by_leaf = {k.rpartition(".")[2]: k for k in known}
    hint = ""
    if leaf in _ALIASES:
        hint = f" (did you mean {_ALIASES[leaf]!r}?)"
    elif leaf in by_leaf:  # the right name in the wrong section
        hint = f" (did you mean {by_leaf[leaf]!r}?)"
    else:
        hint = did_you_mean(key, known)
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    return UserError(f"unknown key {key}{hint}; {parent} has {', '.join(siblings) or 'no keys'}")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    made = {}
    for key, value in values.items():
        if key not in fields:
            raise _unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in fields])
        made[key] = _convert(hints[key], value, f"{where}.{key}")
    return cls(**made)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it must be a section with keys of its own")
        return _build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            hint_text = did_you_mean(str(value), allowed)
            raise UserError(f"{where} is {value!r}{hint_text}; allowed: {', '.join(allowed)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not hint:
        raise UserError(
            f"{where} is {value!r} ({type(value).__name__}); it must be {hint.__name__}"
        )
    return value
