"""The safetensors format, read and written tensor by tensor.

A file is an 8-byte little-endian length, a JSON header `{name: {dtype, shape, data_offsets}}` and
the tensors' bytes (https://huggingface.co/docs/safetensors). We read it ourselves for two reasons.
A tensor is mapped when asked for and unmapped when dropped, so that resident memory holds one
tensor of the file and never the file; and writing takes tensors one after the other from a sharded
model, so that a full replica never exists on the host.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from har_jax.errors import UserError
from har_jax.foreign import Size, check_file, parse_json, shortened, typed

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{8 * n}": np.dtype(f"{kind.lower()}{n}") for kind in "IU" for n in (8, 4, 2, 1)},
    "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, not yet read."""

    file: Path
    name: str
    dtype_name: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.dtype_name]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A read-only view of the file, of some of the tensor's rows or all; its memory is given
        back when the view is dropped."""
        shape = self.shape
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(stop - start, 0), *shape[1:])
        row = self.nbytes // self.shape[0] if shape and self.shape[0] else 0
        nbytes = math.prod(shape) * self.dtype.itemsize
        if nbytes == 0:
            return np.zeros(shape, self.dtype)
        at = self.offset + start * row
        raw = np.memmap(self.file, np.uint8, "r", offset=at, shape=(nbytes,))
        return raw.view(self.dtype).reshape(shape)


class _Entry(msgspec.Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, in its order.

    As the reference implementation has it, they lie one after the other, from the end of the header
    to the end of the file: none shares a byte with another, and no byte belongs to none.

    Raises:
      UserError: it is no whole safetensors file.
    """

    def broken(why: str) -> UserError:
        return UserError(
            f"{file} is not a whole safetensors file: {why}; copy or download it again"
        )

    try:
        check_file(file)
        size = file.stat().st_size
        with file.open("rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if size < 8 or n > min(_MAX_HEADER, size - 8):
                raise broken(f"its header would take {n} bytes, but the file has {size}")
            text = f.read(n)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {file}: {why}; check path and rights") from error
    where, fix = f"the header of {file}", "copy or download it again"
    header = parse_json(text, where, "a safetensors file as it was saved or downloaded", once=True)
    header = typed(header, dict[str, Any], where, fix)
    typed(header.pop("__metadata__", None), dict[str, str] | None, f"{where}: __metadata__", fix)
    entries = [
        (name, typed(entry, _Entry, f"{where}: tensor {shortened(repr(name))}", fix))
        for name, entry in header.items()
    ]
    tensors, at = {}, 0
    for name, entry in sorted(entries, key=lambda pair: pair[1].data_offsets):
        told, (begin, end) = shortened(repr(name)), entry.data_offsets
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{file}: tensor {told} has the dtype {shortened(repr(entry.dtype))}, which is not "
                f"among {', '.join(DTYPES)}; convert it first"
            )
        tensor = Tensor(file, name, entry.dtype, tuple(entry.shape), 8 + n + begin)
        if end - begin != tensor.nbytes:
            raise broken(f"tensor {told} spans {end - begin} bytes and needs {tensor.nbytes}")
        if begin != at:
            what = (
                "shares bytes with another" if begin < at else f"leaves out {begin - at} before it"
            )
            raise broken(f"tensor {told} {what}")
        if 8 + n + end > size:
            raise broken(f"it ends at byte {size}, but tensor {told} reaches to {8 + n + end}")
        tensors[name], at = tensor, end
    if 8 + n + at != size:
        raise broken(f"its last {size - 8 - n - at} bytes belong to no tensor")
    return {name: tensors[name] for name, _ in entries}


def write(
    file: Path,
    specs: Mapping[str, tuple[tuple[int, ...], Any]],
    arrays: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes the tensors of `specs` ({name: (shape, dtype)}), taken from `arrays` one by one.

    `arrays` yields every name of `specs` in its order. The metadata say "pt", without which
    transformers refuses a file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (shape, dtype) in specs.items():
        end = at + math.prod(shape) * np.dtype(dtype).itemsize
        kind = _NAMES[np.dtype(dtype)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    with file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for (name, array), (want, (shape, dtype)) in zip(arrays, specs.items(), strict=True):
            if name != want or array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
                raise ValueError(
                    f"got {name} {array.shape} {array.dtype}, not {want} {shape} {dtype}"
                )
            f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
