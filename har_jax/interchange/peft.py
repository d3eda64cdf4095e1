"""LoRA adapters as PEFT lays them out: `peft.PeftModel.from_pretrained(base, directory)`.

adapter_config.json        rank, alpha, target modules, where the base model is
adapter_model.safetensors  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [r,in]
                           ...lora_B.weight [out,r]
projector.safetensors      ours, not PEFT's: linear_1.weight [out,in], linear_1.bias [out], ...
projector_config.json      what fixes its shapes and how it is used, and where the encoder is
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from har_jax.config import LoraConfig
from har_jax.distributed import gather
from har_jax.errors import UserError
from har_jax.foreign import Finite, Keys, listed, shortened
from har_jax.interchange import hf_dir, hub, safetensors_file
from har_jax.interchange.families.registry import family_of
from har_jax.interchange.safetensors_file import Tensor
from har_jax.interchange.table import Places, Row, find, linear, located, sources
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.lora import FACTORS, is_factor
from har_jax.models.sizes import Width
from har_jax.types import AnyArray, Array

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROJECTOR, PROJECTOR_CONFIG = "projector.safetensors", "projector_config.json"

PROJECTOR_SETTINGS = (
    *("projector", "prefix_tokens", "projector_hidden", "vision_layer", "vision_tokens", "prompt"),
)
"""Of the model section of a configuration: what `projector_config.json` must have."""

_OLDER = {"vision_tokens": "patches"}
"""What files mean that were written before there was such a setting."""

PROJECTOR_TABLE = [
    *linear("linear_1", "linear_1", bias="f -> f"),
    *linear("linear_2", "linear_2", bias="f -> f"),
]

_PREFIX = "base_model.model."
_PLAIN = {"use_dora": False, "lora_bias": False, "bias": "none"}
"""Settings of PEFT that change what an adapter computes, at the values that we can follow."""
KEYS = Keys(
    used={
        "peft_type": str,
        "r": Width,
        "lora_alpha": Finite,
        "use_rslora": bool | None,
        "base_model_name_or_path": str | None,
        "revision": str | None,  # of the base, if that is of the hub
    },
    fixed={
        **{key: (value,) for key, value in _PLAIN.items()},
        "init_lora_weights": (True, False, "gaussian"),
        "fan_in_fan_out": (True, False),  # how the base's kernels lie, which its family says
        "use_qalora": (False,),
        "use_bdlora": (False,),
        "ensure_weight_tying": (False,),
    },
    # Which linears have adapters is what the tensors say.
    harmless=frozenset({
        "task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "megatron_core", "qalora_group_size", "runtime_config", "unsloth_fixed",
    }),
    why={
        "init_lora_weights": "it may have changed the base's weights before training: save with "
        "path_initial_model_for_weight_conversion, or merge",
        "modules_to_save": "weights that were trained whole",
        "trainable_token_indices": "embeddings that were trained",
    },
)  # fmt: skip
_NAMED = re.compile(r"(\.lora_[AB])\.[^.]+\.weight$")
"""A tensor that names its adapter too, as PEFT's modules do and its files do not."""


def adapter_table(lm: DecoderConfig) -> list[Row]:
    """Of the factors of every linear in a decoder: as its kernels, with the rank for one side."""
    rows = []
    for row in family_of(lm).table:
        if not row.path.endswith(".kernel"):
            continue
        hf, path = _PREFIX + row.hf.removesuffix(".weight"), row.path.removesuffix(".kernel")
        left, right = row.axes.split("->")
        first, second = re.findall(r"\([^)]*\)|\S+", left)
        # Ours begin with what goes in; a `Conv1D` of the file (GPT-2's) does too.
        into = first if right.split()[0] in first.strip("()").split() else second
        out = second if into == first else first
        rows += [
            Row(f"{hf}.lora_A.weight", f"{path}{FACTORS[0]}", f"r {into} -> {into.strip('()')} r"),
            Row(f"{hf}.lora_B.weight", f"{path}{FACTORS[1]}", f"{out} r -> r {out.strip('()')}"),
        ]
    return rows


def _places(lm: DecoderConfig) -> Places:
    """How else the names of `adapter_table` begin, see `table.located`."""
    within = (f"{_PREFIX}model.language_model.", f"{_PREFIX}language_model.")  # of a LLaVA
    places: dict[str, tuple[str, ...]] = {
        f"{_PREFIX}{begun}": (_PREFIX, within[0], within[1] + begun)  # the first: without an output
        for begun in family_of(lm).places
    }
    return places | {f"{_PREFIX}lm_head": (f"{within[1]}lm_head",)}


def adapter_config(
    config: LoraConfig, modules: Iterable[str], base: str, in_first: bool = False
) -> dict[str, Any]:
    """The contents of `adapter_config.json`; `modules` are PEFT's names of the adapted linears,
    and `in_first` says that their kernels lie `[in, out]` in files."""
    on_hub = hub.named(base)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": on_hub.repo if on_hub else base,
        "revision": on_hub.revision if on_hub else None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "init_lora_weights": True,
        "use_rslora": False,
        "fan_in_fan_out": in_first,
        "inference_mode": True,
        **_PLAIN,
    }


def _short(names: Iterable[str], n_layers: int) -> list[str]:
    """`["self_attn.q_proj"]` for that of every layer, else the whole names."""
    names = set(names)
    stems = {re.sub(r"^(.*\.)?layers\.\d+\.", r"\1layers.{}.", name) for name in names}
    if {stem.format(i) for stem in stems for i in range(n_layers)} - names:
        return sorted(names)
    return sorted(stem.rpartition("layers.{}.")[2] for stem in stems)


def save_adapters(
    params: Mapping[str, Array],
    config: LoraConfig,
    directory: Path,
    *,
    base: str,
    lm: DecoderConfig,
) -> None:
    """Writes the adapters of a decoder. With several processes all call this; the first writes.

    Args:
      params: of a decoder, in any layout; what is no factor is passed over.
      config: with which the adapters were attached.
      directory: must be there.
      base: where PEFT finds the model that the adapters belong to: a directory or a name of the
        hub, with its revision if it has one.
      lm: the decoder's configuration.
    """
    table, values = adapter_table(lm), {}
    for name, value in params.items():
        if is_factor(name):
            whole = gather(value)
            for source in sources(table, name, whole.shape):
                part = whole if source.layer is None else whole[source.layer]
                values[source.hf] = source.row.write(part)
    modules = {name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in values}
    first = [row.axes.split("->") for row in family_of(lm).table if row.path.endswith(".kernel")]
    in_first = any(left.split()[0] == right.split()[0] for left, right in first)
    contents = adapter_config(config, _short(modules, lm.num_hidden_layers), base, in_first)
    _write(directory / ADAPTER, values, directory / ADAPTER_CONFIG, contents)


def save_projector(
    params: Mapping[str, AnyArray], directory: Path, settings: Mapping[str, Any]
) -> None:
    """Writes a projector's parameters (`linear_1.kernel`, ...) and, beside them, `settings`."""
    values = {}
    for name, value in params.items():
        row, hf = find(PROJECTOR_TABLE, name)
        values[hf] = row.write(gather(value))
    _write(directory / PROJECTOR, values, directory / PROJECTOR_CONFIG, dict(settings))


def _write(
    file: Path, values: Mapping[str, np.ndarray], config_file: Path, config: dict[str, Any]
) -> None:
    if jax.process_index() == 0:
        values = dict(sorted(values.items()))
        specs = {name: (value.shape, value.dtype) for name, value in values.items()}
        safetensors_file.write(file, specs, values.items())
        hf_dir.write_json(config_file, config)


def read_adapters(
    directory: str | os.PathLike[str], lm: DecoderConfig
) -> tuple[LoraConfig, dict[str, tuple[Row, Tensor]]]:
    """What PEFT saved for a decoder: settings as ours, and for each factor its row and tensor.

    The factors are those of the canonical layout, `layers.0.attn.q.lora_a`.

    Args:
      lm: of the decoder that the adapters are for.

    Raises:
      UserError: no adapters there, or of a kind, or for layers, that we do not have.
    """
    directory = Path(directory)
    config = adapter_settings(directory)
    if lacking := [key for key in ("r", "lora_alpha") if key not in config]:
        raise UserError(
            f"{directory / ADAPTER_CONFIG} lacks {' and '.join(lacking)}, without which nobody "
            "knows what the adapters amount to; give the file that PEFT saved"
        )
    rank, n_layers = config["r"], lm.num_hidden_layers
    tensors, problems = _tensors(directory / ADAPTER)
    table = located(adapter_table(lm), tensors, _places(lm))
    rows = {_name(row.hf, i): (row, i) for row in table for i in range(n_layers)}
    found: dict[str, tuple[Row, Tensor]] = {}
    for name, tensor in tensors.items():
        if name not in rows:
            problems.append(f"{name}, {_why_unknown(name, lm)}")
            continue
        row, i = rows[name]
        found[_name(row.path, i)] = row, tensor
        side = 0 if row.path.endswith(FACTORS[0]) else -1
        if len(tensor.shape) != 2 or tensor.shape[side] != rank:
            problems.append(f"{name} of shape {list(tensor.shape)}, where r={rank}")
    linears = sorted({name.rpartition(".")[0] for name in found})
    for name in linears:
        if lone := [factor for factor in FACTORS if name + factor not in found]:
            problems.append(f"{name} without its lora_{lone[0][-1].upper()}")
    if problems or not found:
        what = listed(problems, "; ") if problems else "no adapters"
        raise UserError(
            f"{directory / ADAPTER} has {what}; give adapters of this base model as PEFT saves "
            "them, or merge them into it with PEFT and load the result"
        )
    targets = "|".join(re.escape(name) for name in _short(linears, n_layers))
    alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1)
    return LoraConfig(rank, alpha, targets), found


def _tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of adapters under the names that PEFT's files have, and what is wrong with
    them."""
    tensors: dict[str, Tensor] = {}
    problems = []
    for name, tensor in safetensors_file.read_header(file).items():
        if name.endswith(".base_layer.weight"):
            continue  # PEFT saves a copy of an output layer that it adapts
        plain = _NAMED.sub(r"\1.weight", name)
        if plain in tensors:
            problems.append(f"more than one adapter of {plain}")
        tensors[plain] = tensor
    return tensors, problems


def _why_unknown(name: str, lm: DecoderConfig) -> str:
    if "lora_embedding" in name or "lora_" not in name:
        what = "an adapter of embeddings" if "lora_" in name else "saved whole"
        return f"{what}, which would replace or change the base's own"
    return f"which a {lm.model_type} of {lm.num_hidden_layers} layers does not have"


def adapter_settings(directory: Path) -> dict[str, Any]:
    """What is used of `adapter_config.json`, checked to be of adapters that we have."""
    if not (directory / ADAPTER).exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"{directory} holds pickled adapters (adapter_model.bin); save them again with PEFT, "
            "which writes safetensors"
        )
    file = directory / ADAPTER_CONFIG
    config = hf_dir.read_json(file)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{directory} holds a PEFT adapter of type {shortened(repr(config.get('peft_type')))}; "
            "only LORA is read"
        )
    return KEYS.read(config, str(file))


def _name(template: str, number: int) -> str:
    return template.replace("{}", str(number))


def read_projector(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings of a projector that `save_projector` wrote, and its tensors."""
    directory = Path(directory)
    for name in (PROJECTOR, PROJECTOR_CONFIG):
        if not (directory / name).exists():
            raise UserError(
                f"{directory} holds no projector: it has no {name}; give a run of har_jax.train, "
                "or a directory that har_jax.export --format=peft wrote"
            )
    settings = {**_OLDER, **hf_dir.read_json(directory / PROJECTOR_CONFIG)}
    if "clip" in settings:  # its name once
        settings.setdefault("encoder", settings.pop("clip"))
    missing = [key for key in PROJECTOR_SETTINGS if key not in settings]
    if missing:
        raise UserError(
            f"{directory / PROJECTOR_CONFIG} lacks {', '.join(missing)}; it must say how the "
            "projector is used"
        )
    return settings, safetensors_file.read_header(directory / PROJECTOR)
