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
import numpy as np

from har_jax.errors import UserError

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


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. `UserError` if it is no whole safetensors file."""

    def broken(why: str) -> UserError:
        return UserError(
            f"{file} is not a whole safetensors file: {why}; copy or download it again"
        )

    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if size < 8 or n > min(_MAX_HEADER, size - 8):
                raise broken(f"its header would take {n} bytes, but the file has {size}")
            header = json.loads(f.read(n))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check path and rights") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise broken("its header is not JSON") from error
    if not isinstance(header, dict):
        raise broken("its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        try:
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            tensor = Tensor(file, name, entry["dtype"], shape, 8 + n + begin)
            known = tensor.dtype_name in DTYPES
            whole = not known or end - begin == tensor.nbytes
        except (KeyError, TypeError, ValueError) as error:
            raise broken(f"the entry of {name!r} in its header is malformed") from error
        if not known:
            raise UserError(
                f"{file}: tensor {name!r} has the dtype {tensor.dtype_name!r}, which is not among "
                f"{', '.join(DTYPES)}; convert it first"
            )
        if not whole or not 0 <= begin <= end:
            raise broken(f"tensor {name!r} spans {end - begin} bytes and needs {tensor.nbytes}")
        if 8 + n + end > size:
            raise broken(f"it ends at byte {size}, but tensor {name!r} reaches to {8 + n + end}")
        tensors[name] = tensor
    return tensors


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
