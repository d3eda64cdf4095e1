"""Parameters filled from a directory of weights, and written to one, by a table (`table.py`
beside).

`load` fills flat parameters that were only shaped, shard by shard, each from its places in the
mapped file: no full replica exists, on host or device, and no module stands in between. `save` is
the way back, tensor by tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.distributed import gather
from har_jax.errors import UserError
from har_jax.foreign import listed
from har_jax.interchange import hf_dir, safetensors_file
from har_jax.interchange.safetensors_file import Tensor
from har_jax.interchange.table import Places, Source, Table, located, sources
from har_jax.models import quantised
from har_jax.models.functional import Params
from har_jax.sharding import RULES, LogicalAxes, Rules, sharding_of
from har_jax.types import Int

MAX_FILE_BYTES = 5_000_000_000
"""Larger models are written as several files with an index, as transformers does."""


def load(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    logical_axes: Mapping[str, LogicalAxes],
    directory: Path,
    table: Table,
    *,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    as_stored: bool = False,
    ignore: str = "",
    places: Places | None = None,
    allow_nan: bool = False,
) -> Params:
    """The parameters of these names, with the weights of `directory`.

    Args:
      shapes: what is wanted, with the dtype that it is to have.
      mesh: where the parameters go, by their logical axes and `rules`; without one, the default
        device.
      as_stored: keep the dtype of the file instead.
      ignore: regex of tensors in the file that are passed over.
      places: how else the table's names may begin in the file (`table.located`).
      allow_nan: take tensors with NaNs as they are.

    Raises:
      UserError: one that counts all missing, unexpected, duplicate and misshapen tensors and names
        the first, with both shapes, before anything is read; or the first that holds a NaN.
    """
    tensors, problems = hf_dir.open_weights(directory)
    layouts = quantised.layouts(shapes)
    dense = {name: like for name, like in shapes.items() if not quantised.is_part(name)}
    f32 = jnp.float32
    dense |= {name: jax.ShapeDtypeStruct(x.shape, f32) for name, x in layouts.items()}
    table = located(table, tensors, places or {})
    wanted = {name: sources(table, name, like.shape) for name, like in dense.items()}
    _check(directory, tensors, problems, dense, wanted, ignore)
    params: Params = {}
    for name, like in shapes.items():
        whole = quantised.dense_name(name)
        parts = [(tensors[source.hf], source) for source in wanted[whole]]
        if quantised.is_part(name):
            kernel = _Parameter(whole, layouts[whole].shape, parts, f32, allow_nan)
            parameter = _Part(
                name, like.shape, parts, like.dtype, allow_nan, kernel, layouts[whole]
            )
        else:
            dtype = None if as_stored else like.dtype
            parameter = _Parameter(name, like.shape, parts, dtype, allow_nan)
        params[name] = parameter.place(logical_axes[name], mesh, rules)
    return params


def _check(
    directory: Path,
    tensors: dict[str, Tensor],
    problems: list[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    wanted: Mapping[str, list[Source]],
    ignore: str,
) -> None:
    """Everything wrong with the tensors, in one error."""
    problems = list(problems)
    for name, found in wanted.items():
        for source in found:
            shape = source.row.hf_shape(source.shape(shapes[name].shape))
            tensor = tensors.get(source.hf)
            if tensor is None:
                problems.append(f"{source.hf} {list(shape)} is missing")
            elif tensor.shape != shape:
                problems.append(
                    f"{source.hf} is {list(tensor.shape)} in the file and {list(shape)} in the "
                    "model"
                )
            elif not jnp.issubdtype(tensor.dtype, jnp.floating):
                problems.append(f"{source.hf} has the dtype {tensor.dtype_name}, which is no float")
    names = {source.hf for source in itertools.chain(*wanted.values())}
    for name, tensor in tensors.items():
        if name not in names and not (ignore and re.fullmatch(ignore, name)):
            problems.append(f"{name} {list(tensor.shape)} is unexpected")
    if problems:
        raise UserError(
            f"the weights in {directory} do not fit its config.json, {len(problems):,} problem(s): "
            f"{listed(problems, '; ', 4)}. Give the config.json that belongs to these weights"
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

    def place(self, axes: LogicalAxes, mesh: Mesh | None, rules: Rules) -> jax.Array:
        """On its devices, one shard after the other: the host holds one at a time."""
        if mesh is None:
            return jnp.asarray(self.read(tuple(slice(0, n) for n in self.shape)))
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
            if source.layer is None:
                own, rest = out, index
            elif index[0].start <= source.layer < index[0].stop:
                own, rest = out[source.layer - index[0].start], index[1:]
            else:
                continue
            for where, values in source.blocks(tensor, self.shape, rest):
                pairs = zip(where, rest, strict=True)
                place = [slice(w.start - r.start, w.stop - r.start) for w, r in pairs]
                part = own[(*place, ...)]  # a view, of a scalar too
                part[...] = values
                if not self.allow_nan and np.isnan(part).any():
                    raise UserError(
                        f"{tensor.file}: tensor {tensor.name!r} holds NaNs, so the model would "
                        "answer nothing else; copy or download it again, or load with "
                        "allow_nan=True"
                    )
        return out


@dataclasses.dataclass(frozen=True)
class _Part(_Parameter):
    """Codes or scales of a kernel, quantised shard by shard on the way."""

    kernel: _Parameter
    layout: quantised.Layout

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Layer by layer (or head by head), for the dense values of a stack take many times as
        much."""
        if self.layout.axis == 0:
            return self._quantised(index)
        out = np.empty([s.stop - s.start for s in index], self.dtype)
        for i in range(index[0].start, index[0].stop):
            out[i - index[0].start] = self._quantised((slice(i, i + 1), *index[1:]))[0]
        return out

    def _quantised(self, index: tuple[slice, ...]) -> np.ndarray:
        """From the whole blocks in which this part lies."""
        axis, block = self.layout.axis, self.layout.block
        of_codes = self.path.endswith(quantised.CODES)
        each = self.layout.packed if of_codes else block  # places of the kernel, for one of ours
        start, stop = index[axis].start * each, index[axis].stop * each
        first, last = start // block, -(-stop // block)
        places = (*index[:axis], slice(first * block, last * block), *index[axis + 1 :])
        values = self.kernel.read(places)
        codes, scales = quantised.quantise(values, self.layout._replace(shape=values.shape))
        if not of_codes:
            return scales
        offset = (start - first * block) // each
        return np.ascontiguousarray(
            np.take(codes, np.arange(offset, offset + (stop - start) // each), axis=axis)
        )


def save(
    params: Mapping[str, Any], directory: Path, table: Table, config: Mapping[str, Any]
) -> None:
    """Writes `config.json` and the weights under Hugging Face's names, gathered one by one.

    A directory that does not exist appears complete or not at all; in an existing one (say, with a
    tokenizer) the files are replaced one by one. With several processes, all call this and the
    first one writes.
    """
    named = params.items()
    entries = [_Entry(s, x) for name, x in named for s in sources(table, name, x.shape)]
    entries.sort(key=lambda entry: entry.name)
    dtypes = {str(entry.value.dtype) for entry in entries}  # transformers loads in this by default
    config = {**config, "dtype": dtypes.pop() if len(dtypes) == 1 else "float32"}
    new = not directory.exists() and jax.process_index() == 0
    with hf_dir.staging(directory) if new else contextlib.nullcontext(directory) as made:
        _write(made, entries, config)


class _Entry(NamedTuple):
    """A tensor to be written, and the parameter that holds it."""

    source: Source
    value: jax.Array

    @property
    def name(self) -> str:
        return self.source.hf

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file."""
        return self.source.row.hf_shape(self.source.shape(self.value.shape))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.value.dtype.itemsize

    def gathered(self) -> np.ndarray:
        """As the file holds it. Takes every process, and no more of a stack than its layer."""
        value = self.value if self.source.layer is None else _layer(self.value, self.source.layer)
        return self.source.row.write(gather(value))


@jax.jit
def _layer(value: jax.Array, i: int | Int[jax.Array, ""]) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(value, i, axis=0, keepdims=False)


def _write(directory: Path, entries: list[_Entry], config: Mapping[str, Any]) -> None:
    files: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.nbytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.nbytes
    n = len(files)
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    names = [hf_dir.WEIGHTS] if n == 1 else names
    primary = jax.process_index() == 0
    if primary:
        for stale in directory.glob("*.safetensors*"):
            stale.unlink()
    for name, part in zip(names, files, strict=True):
        arrays = ((entry.name, entry.gathered()) for entry in part)
        if not primary:
            for _ in arrays:  # gathering takes every process
                pass
            continue
        partial = directory / f".{name}.partial"
        specs = {entry.name: (entry.shape, entry.value.dtype) for entry in part}
        safetensors_file.write(partial, specs, arrays)
        partial.replace(directory / name)
    if not primary:
        return
    if n > 1:
        weight_map = {e.name: name for name, part in zip(names, files, strict=True) for e in part}
        total = sum(entry.nbytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        hf_dir.write_json(directory / hf_dir.INDEX, index)
    hf_dir.write_json(directory / "config.json", dict(config))
