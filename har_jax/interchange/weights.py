"""Models filled from a directory of weights, and written to one, by a table (`table.py` beside).

`load` fills a model that was only shaped (`nnx.eval_shape`), shard by shard, each from its places
in the mapped file: no full replica exists, on host or device. `save` is the way back, tensor by
tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from har_jax.errors import UserError
from har_jax.interchange import hf_dir, safetensors_file
from har_jax.interchange.safetensors_file import Tensor
from har_jax.interchange.table import Source, Table, sources
from har_jax.sharding import RULES, LogicalAxes, Rules, sharding_of

MAX_FILE_BYTES = 5_000_000_000
"""Larger models are written as several files with an index, as transformers does."""


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
    wanted = {keys: sources(table, _path(keys), v.get_value().shape) for keys, v in flat}
    _check(directory, tensors, problems, list(itertools.chain(*wanted.values())), ignore)
    filled = []
    for keys, variable in flat:
        parameter = _Parameter(
            _path(keys),
            variable.get_value().shape,
            [(tensors[source.hf], source) for source in wanted[keys]],
            dtype,
            allow_nan,
        )
        axes = variable.get_metadata().get("logical_axes")
        value = parameter.place(axes, mesh, RULES if rules is None else rules)
        filled.append((keys, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check(
    directory: Path,
    tensors: dict[str, Tensor],
    problems: list[str],
    wanted: list[Source],
    ignore: str,
) -> None:
    """Everything wrong with the tensors, in one error."""
    problems = list(problems)
    for row, name, piece in wanted:
        shape = row.hf_shape(piece.shape)
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(shape)} is missing")
        elif tensor.shape != shape:
            problems.append(
                f"{name} is {list(tensor.shape)} in the file and {list(shape)} in the model"
            )
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} has the dtype {tensor.dtype_name}, which is no float")
    names = {source.hf for source in wanted}
    for name, tensor in tensors.items():
        if name not in names and not (ignore and re.fullmatch(ignore, name)):
            problems.append(f"{name} {list(tensor.shape)} is unexpected")
    if problems:
        raise UserError(
            f"the weights in {directory} do not fit its config.json, {len(problems)} problem(s): "
            f"{'; '.join(problems)}. Give the config.json that belongs to these weights"
        )


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A parameter that is still in the file."""

    path: str
    shape: tuple[int, ...]
    sources: list[tuple[Tensor, Source]]
    wanted_dtype: Any  # None: the file's
    allow_nan: bool

    @property
    def dtype(self) -> np.dtype:
        if self.wanted_dtype is not None:
            return np.dtype(self.wanted_dtype)
        return functools.reduce(jnp.promote_types, (tensor.dtype for tensor, _ in self.sources))

    def place(self, axes: LogicalAxes | None, mesh: Mesh | None, rules: Rules) -> jax.Array:
        """On its devices, one shard after the other: the host holds one at a time."""
        if mesh is None:
            return jnp.asarray(self.read(tuple(slice(0, n) for n in self.shape)))
        axes = (None,) * len(self.shape) if axes is None else axes
        sharding = sharding_of(self.shape, axes, mesh, rules, self.path)
        holders: dict[tuple, list[Any]] = {}  # of one part, which is read once
        for device, index in sharding.addressable_devices_indices_map(self.shape).items():
            span = tuple(s.indices(n)[:2] for s, n in zip(index or (), self.shape, strict=True))
            holders.setdefault(span, []).append(device)
        shards = []
        for span, devices in holders.items():
            part = self.read(tuple(slice(*s) for s in span))
            # Waiting lets go of the part before the next one is read.
            shards += jax.block_until_ready([jax.device_put(part, d) for d in devices])
            del part
        return jax.make_array_from_single_device_arrays(self.shape, sharding, shards)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of it, copied out of the file, in its dtype."""
        out = np.empty([s.stop - s.start for s in index], self.dtype)
        for tensor, source in self.sources:
            place = source.piece.index
            common = [
                slice(max(a.start, b.start), min(a.stop, b.stop))
                for a, b in zip(index, place, strict=True)
            ]
            if any(s.start >= s.stop for s in common):
                continue
            for where, values in source.blocks(tensor, _shifted(common, place, -1)):
                part = out[(*_shifted(_shifted(where, place, 1), index, -1), ...)]  # a view
                part[...] = values
                if not self.allow_nan and np.isnan(part).any():
                    raise UserError(
                        f"{tensor.file}: tensor {tensor.name!r} holds NaNs, so the model would "
                        "answer nothing else; copy or download it again, or load with "
                        "allow_nan=True"
                    )
        return out


def _shifted(index: Sequence[slice], by: Sequence[slice], sign: int) -> tuple[slice, ...]:
    """An index counted from where another one starts (sign -1), or the other way round."""
    return tuple(
        slice(s.start + sign * b.start, s.stop + sign * b.start)
        for s, b in zip(index, by, strict=True)
    )


def save(model: nnx.Module, directory: Path, table: Table, config: dict[str, Any]) -> None:
    """Writes `config.json` and the weights under Hugging Face's names, gathered one by one.

    A directory that does not exist appears complete or not at all; in an existing one (say, with a
    tokenizer) the files are replaced one by one. With several processes, all call this and the
    first one writes.
    """
    _, state = nnx.split(model)
    entries = []
    for keys, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        entries += [_Entry(s, value) for s in sources(table, _path(keys), value.shape)]
    entries.sort(key=lambda entry: entry.name)
    config = {**config, "dtype": _config_dtype([entry.value.dtype for entry in entries])}
    if directory.exists():
        _write(directory, entries, config)
    elif jax.process_index() == 0:
        with hf_dir.staging(directory) as made:
            _write(made, entries, config)
    else:
        _write(directory, entries, config)


class _Entry(NamedTuple):
    """A tensor to be written, and the parameter that holds it."""

    source: Source
    value: jax.Array

    @property
    def name(self) -> str:
        return self.source.hf

    @property
    def spec(self) -> tuple[tuple[int, ...], Any]:
        return self.source.row.hf_shape(self.source.piece.shape), self.value.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.source.piece.shape) * self.value.dtype.itemsize

    def gathered(self) -> np.ndarray:
        """As the file holds it. Takes every process, and no more of a stack than its layer."""
        row, _, (_, index, shape) = self.source
        value = self.value
        if index and index[0].stop - index[0].start < value.shape[0]:
            value = _layer(value, index[0].start)
            index = (slice(0, 1), *index[1:])
        if not value.is_fully_addressable:
            value = multihost_utils.process_allgather(value, tiled=True)
        return row.write(_on_host(value)[index].reshape(shape))


@jax.jit
def _layer(value: jax.Array, i: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(value, i, 1, axis=0)


def _on_host(value: jax.Array | np.ndarray) -> np.ndarray:
    """A copy that goes away when it is dropped; `np.asarray` keeps that of a sharded array."""
    if isinstance(value, np.ndarray) or len(value.sharding.device_set) == 1:
        return np.asarray(value)
    out = np.empty(value.shape, value.dtype)
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = shard.data
    return out


def _config_dtype(dtypes: list[Any]) -> str:
    """What transformers loads the weights as by default."""
    names = {str(d) for d in dtypes}
    return names.pop() if len(names) == 1 else "float32"


def _write(directory: Path, entries: list[_Entry], config: dict) -> None:
    files: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.nbytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.nbytes
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
        arrays = ((entry.name, entry.gathered()) for entry in part)
        if not writer:
            for _ in arrays:  # gathering takes every process
                pass
            continue
        partial = directory / f".{name}.partial"
        safetensors_file.write(partial, {entry.name: entry.spec for entry in part}, arrays)
        partial.replace(directory / name)
    if not writer:
        return
    if n > 1:
        weight_map = {e.name: name for name, part in zip(names, files, strict=True) for e in part}
        total = sum(entry.nbytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        hf_dir.write_json(directory / hf_dir.INDEX, index)
    hf_dir.write_json(directory / "config.json", config)
