"""NumPy's files that others wrote: `.npy`, mapped into memory, and `.npz`. No pickle is read."""

from __future__ import annotations

import io
import os
import pathlib
import zipfile

import numpy as np

from har_jax.errors import UserError
from har_jax.foreign import check_file

_LARGEST = 1 << 30
"""Bytes that an `.npz` may unpack to: deflate packs zeros a thousandfold."""


def read_npy(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """The array of a `.npy`, which is read where it is looked at; `what` it is, for errors.

    Raises:
      UserError: no such file, or not an array of numbers.
    """
    name = os.fspath(path)
    try:
        check_file(path)
        with pathlib.Path(path).open("rb") as file:
            start = file.read(4)
        if start == b"PK\3\4":
            raise UserError(
                f"{name} is an .npz, several arrays in a file; save {what} alone, with numpy.save"
            )
        return np.lib.format.open_memmap(path, mode="r")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {name!r}; give {what} as a .npy") from None
    except Exception as error:  # NumPy parses a header as Python, and raises as its parser does
        raise UserError(
            f"{name} is not a .npy file of numbers: {_told(error)}; give {what}"
        ) from error


def read_npz(path: str | os.PathLike[str], what: str, fix: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, by name; `what` it is and how to `fix` it are for errors.

    Raises:
      FileNotFoundError: no such file; whoever calls knows what that means.
      UserError: it is not an `.npz` of numbers and texts.
    """
    try:
        check_file(path)
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if (size := sum(member.file_size for member in members)) > _LARGEST:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {_LARGEST:,}")
            return {
                member.filename.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(file.read(member)), allow_pickle=False
                )
                for member in members
            }
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{os.fspath(path)} is not {what} ({_told(error)}); {fix}") from error


def _told(error: Exception) -> str:
    """What others' code says, on one line of some length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
