"""Weights as a table: how the tensors of a Hugging Face file lie in our modules, both ways.

A row names a tensor of the file, the parameter it is here, and how the axes move:

    Row("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attn.q.kernel", "(n h) d -> d n h")

`{}` stands for a layer's number. The left side of the axes are those of the file, brackets join
several of ours; reading splits and permutes, writing permutes and joins, and neither touches a
value, so a round trip is exact bit by bit.

`load` fills a model that was only shaped (`nnx.eval_shape`), tensor by tensor, each device reading
its own shard from the mapped file: no full replica exists, on host or device. `save` is the way
back.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from har_jax.errors import UserError
from har_jax.interchange import hf_dir, safetensors_file
from har_jax.interchange.safetensors_file import Tensor
from har_jax.sharding import RULES, LogicalAxes, Rules, sharding_of

MAX_FILE_BYTES = 5_000_000_000
"""Larger models are written as several files with an index, as transformers does."""


@dataclasses.dataclass(frozen=True)
class Row:
    hf: str
    path: str
    axes: str

    @functools.cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For every axis of the file, the axes of ours that it joins."""
        left, right = self.axes.split("->")
        ours = right.split()
        groups = re.findall(r"\(([^)]*)\)|(\S+)", left)
        return tuple(tuple(ours.index(a) for a in (g or s).split()) for g, s in groups)

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(np.prod([shape[i] for i in group])) for group in self.groups)

    def read(self, tensor: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """File to parameter, as a view."""
        order = [i for group in self.groups for i in group]
        split = tensor.reshape([shape[i] for i in order])
        return split.transpose(np.argsort(order)) if order else split

    def write(self, value: np.ndarray) -> np.ndarray:
        """Parameter to file."""
        order = [i for group in self.groups for i in group]
        permuted = value.transpose(order) if order else value
        return np.ascontiguousarray(permuted).reshape(self.hf_shape(value.shape))


Table = Sequence[Row]


def linear(hf: str, path: str, *, axes: str = "f d -> d f", bias: str | None = None) -> list[Row]:
    """The rows of a `Linear`; `bias` gives the axes of its bias."""
    rows = [Row(f"{hf}.weight", f"{path}.kernel", axes)]
    return rows + ([Row(f"{hf}.bias", f"{path}.bias", bias)] if bias else [])


def norm(hf: str, path: str, *, bias: bool = False) -> list[Row]:
    rows = [Row(f"{hf}.weight", f"{path}.scale", "d -> d")]
    return rows + ([Row(f"{hf}.bias", f"{path}.bias", "d -> d")] if bias else [])


def _fill(template: str, number: str | None) -> str:
    return template if number is None else template.replace("{}", number)


def find(table: Table, path: str) -> tuple[Row, str]:
    """The row of a parameter and its tensor's name; `KeyError` if the table lacks it."""
    number = next((part for part in path.split(".") if part.isdigit()), None)
    template = ".".join("{}" if part.isdigit() else part for part in path.split("."))
    for row in table:
        if row.path == template:
            return row, _fill(row.hf, number)
    raise KeyError(f"no row of the table leads to the parameter {path}")


def _path(keys: tuple) -> str:
    return ".".join(map(str, keys))


def load(
    build: Callable[[], nnx.Module],
    directory: Path,
    table: Table,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
    ignore: str = "",
    allow_nan: bool = False,
) -> Any:
    """The model that `build` makes, with the weights of `directory`.

    Args:
      build: makes the module; called abstractly, so it allocates nothing.
      mesh: where the parameters go, by their logical axes and `rules` (default `sharding.RULES`);
        without a mesh, the default device.
      dtype: of the parameters; None keeps what the file has.
      ignore: regex of tensors in the file that are passed over.
      allow_nan: take tensors with NaNs as they are.

    Raises `UserError`: one that lists every missing, unexpected, duplicate and misshapen tensor,
    with both shapes, before anything is read; or the first tensor that holds a NaN.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(build))
    flat = nnx.to_flat_state(abstract)
    tensors, problems = hf_dir.open_weights(directory)
    rows = {keys: find(table, _path(keys)) for keys, _ in flat}
    _check(directory, tensors, problems, [(rows[k], v) for k, v in flat], ignore)
    filled = []
    for keys, variable in flat:
        row, name = rows[keys]
        value = _place(
            tensors[name],
            row,
            variable.get_value().shape,
            variable.get_metadata().get("logical_axes"),
            mesh,
            RULES if rules is None else rules,
            dtype,
            allow_nan,
        )
        filled.append((keys, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check(
    directory: Path,
    tensors: dict[str, Tensor],
    problems: list[str],
    wanted: list[tuple[tuple[Row, str], Any]],
    ignore: str,
) -> None:
    """Everything wrong with the tensors, in one error."""
    problems = list(problems)
    for (row, name), variable in wanted:
        shape = row.hf_shape(variable.get_value().shape)
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(shape)} is missing")
        elif tensor.shape != shape:
            problems.append(
                f"{name} is {list(tensor.shape)} in the file and {list(shape)} in the model"
            )
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} has the dtype {tensor.dtype_name}, which is no float")
    names = {name for (_, name), _ in wanted}
    for name, tensor in tensors.items():
        if name not in names and not (ignore and re.fullmatch(ignore, name)):
            problems.append(f"{name} {list(tensor.shape)} is unexpected")
    if problems:
        raise UserError(
            f"the weights in {directory} do not fit its config.json, {len(problems)} problem(s): "
            f"{'; '.join(problems)}. Give the config.json that belongs to these weights"
        )


def _place(
    tensor: Tensor,
    row: Row,
    shape: tuple[int, ...],
    axes: LogicalAxes | None,
    mesh: Mesh | None,
    rules: Rules,
    dtype: Any,
    allow_nan: bool,
) -> jax.Array:
    """One parameter, from the mapped file to its devices."""
    view = row.read(tensor.map(), shape)
    dtype = tensor.dtype if dtype is None else np.dtype(dtype)
    shards: dict[str, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        key = str(index)  # devices that hold the same part share one copy of it
        if key not in shards:
            part = np.array(view[index], dtype=dtype, order="C")
            if not allow_nan and np.isnan(part).any():
                raise UserError(
                    f"{tensor.file}: tensor {tensor.name!r} holds NaNs, so the model would answer "
                    "nothing else; copy or download it again, or load with allow_nan=True"
                )
            shards[key] = part
        return shards[key]

    if mesh is None:
        return jnp.asarray(shard((...,)))
    sharding = sharding_of(
        shape, (None,) * len(shape) if axes is None else axes, mesh, rules, row.path
    )
    # Waiting keeps the host's copies of one parameter alive at a time, not the whole model's.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, shard))


def save(model: nnx.Module, directory: Path, table: Table, config: dict[str, Any]) -> None:
    """Writes `config.json` and the weights under Hugging Face's names, gathered one by one.

    A directory that does not exist appears complete or not at all; in an existing one (say, with a
    tokenizer) the files are replaced one by one. With several processes, all call this and the
    first one writes.
    """
    _, state = nnx.split(model)
    entries = []
    for keys, variable in nnx.to_flat_state(state):
        row, name = find(table, _path(keys))
        entries.append((name, row, variable.get_value()))
    entries.sort(key=lambda entry: entry[0])
    config = {**config, "dtype": _config_dtype([value.dtype for _, _, value in entries])}
    if directory.exists():
        _write(directory, entries, config)
    elif jax.process_index() == 0:
        with hf_dir.staging(directory) as made:
            _write(made, entries, config)
    else:
        _write(directory, entries, config)


def _config_dtype(dtypes: list[Any]) -> str:
    """What transformers loads the weights as by default."""
    names = {str(d) for d in dtypes}
    return names.pop() if len(names) == 1 else "float32"


def _write(directory: Path, entries: list[tuple[str, Row, jax.Array]], config: dict) -> None:
    files: list[list[tuple[str, Row, jax.Array]]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry[2].nbytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry[2].nbytes
    n = len(files)
    names = (
        [hf_dir.WEIGHTS]
        if n == 1
        else [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    )
    writer = jax.process_index() == 0
    if writer:
        for stale in directory.glob("*.safetensors*"):
            stale.unlink()
    for name, part in zip(names, files, strict=True):
        arrays = _gathered(part)
        if not writer:
            for _ in arrays:  # gathering takes every process
                pass
            continue
        specs = {hf: (row.hf_shape(v.shape), v.dtype) for hf, row, v in part}
        partial = directory / f".{name}.partial"
        safetensors_file.write(partial, specs, arrays)
        partial.replace(directory / name)
    if not writer:
        return
    if n > 1:
        weight_map = {
            hf: name for name, part in zip(names, files, strict=True) for hf, _, _ in part
        }
        total = sum(v.nbytes for _, _, v in entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        hf_dir.write_json(directory / hf_dir.INDEX, index)
    hf_dir.write_json(directory / "config.json", config)


def _gathered(entries: list[tuple[str, Row, jax.Array]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, row, value in entries:
        if not value.is_fully_addressable:
            value = multihost_utils.process_allgather(value, tiled=True)
        yield name, row.write(np.asarray(value))
