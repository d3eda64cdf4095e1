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
from har_jax.interchange import hf_dir, safetensors_file
from har_jax.interchange.families.registry import family_of
from har_jax.interchange.safetensors_file import Tensor
from har_jax.interchange.table import Row, find, linear, sources
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.lora import FACTORS, is_factor
from har_jax.types import Array

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROJECTOR, PROJECTOR_CONFIG = "projector.safetensors", "projector_config.json"

PROJECTOR_SETTINGS = ("projector", "prefix_tokens", "projector_hidden", "vision_layer", "prompt")
"""Of the model section of a configuration: what `projector_config.json` must have."""

PROJECTOR_TABLE = [
    *linear("linear_1", "linear_1", bias="f -> f"),
    *linear("linear_2", "linear_2", bias="f -> f"),
]

_PREFIX = "base_model.model."
_PLAIN = {"use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none"}
"""Settings of PEFT that change what an adapter computes, at the values that we can follow."""
_EMPTY = ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")


def adapter_table(lm: DecoderConfig) -> list[Row]:
    """Of the factors of every linear in a decoder: as its kernels, with the rank for one side."""
    rows = []
    for row in family_of(lm).table(False):
        if not row.path.endswith(".kernel"):
            continue
        hf, path = _PREFIX + row.hf.removesuffix(".weight"), row.path.removesuffix(".kernel")
        out, into = re.findall(r"\([^)]*\)|\S+", row.axes.split("->")[0])
        rows += [
            Row(f"{hf}.lora_A.weight", f"{path}{FACTORS[0]}", f"r {into} -> {into.strip('()')} r"),
            Row(f"{hf}.lora_B.weight", f"{path}{FACTORS[1]}", f"{out} r -> r {out.strip('()')}"),
        ]
    return rows


def adapter_config(config: LoraConfig, modules: Iterable[str], base: str) -> dict[str, Any]:
    """The contents of `adapter_config.json`; `modules` are PEFT's names of the adapted linears."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "init_lora_weights": True,
        "use_rslora": False,
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
      base: where PEFT finds the model that the adapters belong to.
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
    contents = adapter_config(config, _short(modules, lm.num_hidden_layers), base)
    _write(directory / ADAPTER, values, directory / ADAPTER_CONFIG, contents)


def save_projector(
    params: Mapping[str, Array], directory: Path, settings: Mapping[str, Any]
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
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{directory} holds a PEFT adapter of type {config.get('peft_type')!r}; only LORA is "
            "read"
        )
    odd = [key for key, plain in _PLAIN.items() if config.get(key, plain) != plain]
    odd += [key for key in _EMPTY if config.get(key)]
    if odd:
        raise UserError(
            f"{directory / ADAPTER_CONFIG}: {', '.join(f'{k}={config[k]!r}' for k in odd)} cannot "
            "be followed; merge such an adapter into its base with PEFT and load the result"
        )
    rank, table, n_layers = int(config["r"]), adapter_table(lm), lm.num_hidden_layers
    rows = {_name(row.hf, i): (row, i) for row in table for i in range(n_layers)}
    found: dict[str, tuple[Row, Tensor]] = {}
    unknown = []
    for name, tensor in safetensors_file.read_header(directory / ADAPTER).items():
        if name.endswith(".base_layer.weight"):
            continue  # PEFT saves a copy of an output layer that it adapts
        if name not in rows:
            unknown.append(name)
            continue
        row, i = rows[name]
        found[_name(row.path, i)] = row, tensor
        if rank not in tensor.shape:
            raise UserError(
                f"{directory}: {name} is {list(tensor.shape)}, but {ADAPTER_CONFIG} says r={rank}"
            )
    if unknown or not found:
        what = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        raise UserError(
            f"{directory / ADAPTER} has adapters for {what or 'nothing'}, which a "
            f"{lm.model_type} of {n_layers} layers does not have; give the adapters of this base "
            "model"
        )
    linears = {name.rpartition(".")[0] for name in found}
    targets = "|".join(re.escape(name) for name in _short(linears, n_layers))
    alpha = float(config["lora_alpha"]) * (rank**0.5 if config.get("use_rslora") else 1)
    return LoraConfig(rank, alpha, targets), found


def adapter_settings(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`."""
    if not (directory / ADAPTER).exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"{directory} holds pickled adapters (adapter_model.bin); save them again with PEFT, "
            "which writes safetensors"
        )
    return hf_dir.read_json(directory / ADAPTER_CONFIG)


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
    settings = hf_dir.read_json(directory / PROJECTOR_CONFIG)
    missing = [key for key in PROJECTOR_SETTINGS if key not in settings]
    if missing:
        raise UserError(
            f"{directory / PROJECTOR_CONFIG} lacks {', '.join(missing)}; it must say how the "
            "projector is used"
        )
    return settings, safetensors_file.read_header(directory / PROJECTOR)
