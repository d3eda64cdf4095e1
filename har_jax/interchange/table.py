"""Weights as a table: how the tensors of a Hugging Face file lie in our modules, both ways.

A row names a tensor of the file, the parameter it is here, and how the axes move:

    Row("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attn.q.kernel", "(n h) d -> d n h")

`{}` stands for a layer's number. The left side of the axes are those of the file, brackets join
several of ours; reading splits and permutes, writing permutes and joins, and neither touches a
value, so a round trip is exact bit by bit.

A parameter that is stacked over layers (`models/layouts.py`) has no row of its own. Its layers
have, so that files are the same for every layout. `interchange/weights.py` reads and writes by a
table.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from har_jax.interchange.safetensors_file import Tensor
from har_jax.models.layouts import canonical_names, is_stacked

MAX_MAPPED_BYTES = 32 << 20
"""How much of a file is mapped at a time, for its pages count as the process's memory."""


Groups = tuple[tuple[int, ...], ...]
"""For every axis of a tensor of the file, the axes of ours that it joins."""


@dataclasses.dataclass(frozen=True)
class Row:
    hf: str
    path: str
    axes: str

    @functools.cached_property
    def groups(self) -> Groups:
        left, right = self.axes.split("->")
        ours = right.split()
        groups = re.findall(r"\(([^)]*)\)|(\S+)", left)
        return tuple(tuple(ours.index(a) for a in (g or s).split()) for g, s in groups)

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(np.prod([shape[i] for i in group])) for group in self.groups)

    def read(self, tensor: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """File to parameter, as a view."""
        return _view(tensor, self.groups, shape)

    def write(self, value: np.ndarray) -> np.ndarray:
        """Parameter to file."""
        order = [i for group in self.groups for i in group]
        permuted = value.transpose(order) if order else value
        return np.ascontiguousarray(permuted).reshape(self.hf_shape(value.shape))


def _view(tensor: np.ndarray, groups: Groups, shape: Sequence[int]) -> np.ndarray:
    order = [i for group in groups for i in group]
    split = tensor.reshape([shape[i] for i in order])
    return split.transpose(np.argsort(order)) if order else split


Table = Sequence[Row]


def linear(hf: str, path: str, *, axes: str = "f d -> d f", bias: str | None = None) -> list[Row]:
    """The rows of a `Linear`; `bias` gives the axes of its bias."""
    rows = [Row(f"{hf}.weight", f"{path}.kernel", axes)]
    return rows + ([Row(f"{hf}.bias", f"{path}.bias", bias)] if bias else [])


def norm(hf: str, path: str, *, bias: bool = False) -> list[Row]:
    rows = [Row(f"{hf}.weight", f"{path}.scale", "d -> d")]
    return rows + ([Row(f"{hf}.bias", f"{path}.bias", "d -> d")] if bias else [])


_TOWER = {
    "attn_norm": "layer_norm1",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
"""The parts of a layer of an encoder's towers, and what CLIP's files call them."""


def tower_layers(hf: str, path: str, names: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a `models.encoders.tower.Block`.

    Args:
      hf, path: what precedes the names in the file, and ours, such as "layers.{}".
      names: of parts that a family calls otherwise than CLIP.
    """
    rows = []
    heads = {"axes": "(n h) d -> d n h", "bias": "(n h) -> n h"}
    for part, name in {**_TOWER, **(names or {})}.items():
        theirs, ours = f"{hf}.{name}", f"{path}.{part}"
        if part.endswith("_norm"):
            rows += norm(theirs, ours, bias=True)
        elif part in ("attn.q", "attn.k", "attn.v"):
            rows += linear(theirs, ours, **heads)
        elif part == "attn.o":
            rows += linear(theirs, ours, axes="d (n h) -> n h d", bias="d -> d")
        else:
            rows += linear(theirs, ours, bias="f -> f")
    return rows


def find(table: Table, path: str) -> tuple[Row, str]:
    """The row of a parameter and its tensor's name; `KeyError` if the table lacks it."""
    number = next((part for part in path.split(".") if part.isdigit()), None)
    template = ".".join("{}" if part.isdigit() else part for part in path.split("."))
    for row in table:
        if row.path == template:
            return row, row.hf if number is None else row.hf.replace("{}", number)
    raise KeyError(f"no row of the table leads to the parameter {path}")


Places = Mapping[str, Sequence[str]]
"""How the names of a table begin, and how else they may begin in files, for each beginning."""


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def located(table: Table, names: Collection[str], places: Places) -> list[Row]:
    """The table as a file has its names.

    Each of the beginnings in `places` is settled by itself, for all rows that have it: it becomes
    the one under which the file has most of them, or stays where none has more.

    Args:
      names: of the tensors of the file.
    """
    rows, there = [], {_NUMBER.sub("{}", name) for name in names}
    beginnings = sorted(places, key=len, reverse=True)  # the longest that a row has is its own
    own = {row: next((b for b in beginnings if row.hf.startswith(b)), "") for row in table}
    best = {"": ""}
    for beginning in beginnings:
        rests = [row.hf.removeprefix(beginning) for row in table if own[row] == beginning]

        def found(begun: str, rests: Sequence[str] = rests) -> int:
            return sum(begun + rest in there for rest in rests)

        best[beginning] = max((beginning, *places[beginning]), key=found)
    for row in table:
        hf = best[own[row]] + row.hf.removeprefix(own[row])
        rows.append(dataclasses.replace(row, hf=hf))
    return rows


class Source(NamedTuple):
    """A tensor of the file, and which part of a parameter of ours it is: all, or one layer."""

    row: Row
    hf: str
    layer: int | None  # along the first axis of a stacked parameter; None: the tensor is all of it

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of the tensor as a parameter, where that of our parameter is `whole`."""
        return tuple(whole if self.layer is None else whole[1:])

    def blocks(
        self, tensor: Tensor, whole: Sequence[int], index: tuple[slice, ...]
    ) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """A part of the tensor, from whole rows of the file.

        Args:
          whole: the shape of our parameter.
          index: of the part, in the tensor's own axes as a parameter.

        Yields:
          Where each block lies, and its values, a view of the file that one should not keep.
        """
        shape, groups = self.shape(whole), self.row.groups
        if not groups or not groups[0]:
            yield index, _view(tensor.map(), groups, shape)[index]
            return
        axis = groups[0][0]  # ours, that counts rows of the file, or groups of them
        rows = tensor.shape[0] // shape[axis]
        step = max(1, MAX_MAPPED_BYTES * shape[axis] // max(tensor.nbytes, 1))
        before, after = index[:axis], index[axis + 1 :]
        for start in range(index[axis].start, index[axis].stop, step):
            stop = min(start + step, index[axis].stop)
            some = (*shape[:axis], stop - start, *shape[axis + 1 :])
            values = _view(tensor.map(start * rows, stop * rows), groups, some)
            yield (*before, slice(start, stop), *after), values[(*before, slice(None), *after)]


def sources(table: Table, path: str, shape: Sequence[int]) -> list[Source]:
    """Where the values of a parameter come from; `KeyError` if the table lacks one of them."""
    names, stacked = canonical_names(path, shape), is_stacked(path)
    return [Source(*find(table, name), i if stacked else None) for i, name in enumerate(names)]
