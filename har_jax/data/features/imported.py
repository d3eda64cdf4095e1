"""Features that some other program extracted: an array and the ids of its images.

The array is `[N,Dv]` (one vector per image: for a pooled projector) or `[N,S,Dv]` (tokens: for a
patch projector), as `numpy.save` writes it; ids are a `.npy`, a JSON list, or a text file of one id
per line, in the order of the rows. Any encoder can be tried that way: nothing of it is needed here.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Float, Int64, UInt64

from har_jax.arrays import read_npy
from har_jax.data.dataset import Split
from har_jax.data.features.cache import FeatureKind, digest_of, known_digests
from har_jax.errors import UserError
from har_jax.foreign import read_text, read_typed, shortened

_LARGEST_ID = 2**63 - 1
_Id = Annotated[int, msgspec.Meta(ge=-_LARGEST_ID, le=_LARGEST_ID)]
_BATCH = 256  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Import:
    """An array of features, memory-mapped, and where each image's row is."""

    path: pathlib.Path
    array: Float[np.ndarray, "N S Dv"]
    kind: FeatureKind
    row_of: dict[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[1], self.array.shape[2]

    def check_covers(self, split: Split) -> None:
        """
        Raises:
          UserError: images of the split have no row.
        """
        lacking = [i for i in split.ids if i not in self.row_of]
        if lacking:
            raise UserError(
                f"{self.path} lacks {len(lacking):,} of the {len(split):,} images of split "
                f"{split.name!r} of {split.directory} (such as id {lacking[0]}); add their rows, "
                "or leave the split out with --split"
            )

    def rows(
        self, split: Split, first: int, stop: int
    ) -> Iterator[tuple[Float[np.ndarray, "B S Dv"], UInt64[np.ndarray, " B"]]]:
        """For `feature_writer.write`."""
        ids, known = split.ids, known_digests(split)
        for begin in range(first, stop, _BATCH):
            examples = range(begin, min(begin + _BATCH, stop))
            digests = [known[i] if i in known else digest_of(split[i].image) for i in examples]
            yield self.array[[self.row_of[ids[i]] for i in examples]], np.array(digests, np.uint64)


def open_import(array: str | os.PathLike[str], ids: str | os.PathLike[str]) -> Import:
    """Opens both files and checks them against each other; no features are read.

    Raises:
      UserError: a file is missing or malformed, their lengths differ, or ids repeat.
    """
    path = pathlib.Path(array)
    values = read_npy(path, "features")
    if values.ndim not in (2, 3) or values.dtype.kind != "f" or 0 in values.shape:
        raise UserError(
            f"{path} holds {_described(values)}; features are floats of shape [N,Dv] or [N,S,Dv]"
        )
    numbers = _load_ids(pathlib.Path(ids))
    if len(numbers) != len(values):
        raise UserError(
            f"{ids} has {len(numbers):,} ids, but {path} has {len(values):,} rows; they must match"
        )
    row_of = {int(image_id): row for row, image_id in enumerate(numbers)}
    if len(row_of) < len(numbers):
        seen, counts = np.unique(numbers, return_counts=True)
        raise UserError(f"{ids}: image id {seen[counts > 1][0]} occurs twice; ids must be unique")
    kind: FeatureKind = "patch" if values.ndim == 3 else "pooled"
    return Import(path, values if values.ndim == 3 else values[:, None], kind, row_of)


def _load_ids(path: pathlib.Path) -> Int64[np.ndarray, " N"]:
    if path.suffix == ".npy":
        ids = np.asarray(read_npy(path, "image ids"))
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids > _LARGEST_ID).any():
            raise UserError(
                f"{path} holds {_described(ids)}; image ids are a flat list of integers of 64 bits"
            )
    elif path.suffix == ".json":
        ids = np.array(read_typed(path, list[_Id], "a JSON list of image ids"), np.int64)
    else:
        lines = read_text(path, "the image ids").split()
        wrong = next((line for line in lines if not _is_id(line)), None)
        if wrong is not None:
            what = f"does not hold one image id per line: {shortened(wrong)!r}"
            raise UserError(f"{path} {what}; give integers of 64 bits")
        ids = np.array(list(map(int, lines)), np.int64)
    return ids.astype(np.int64)


def _is_id(text: str) -> bool:
    return bool(re.fullmatch(r"-?[0-9]{1,19}", text)) and abs(int(text)) <= _LARGEST_ID


def _described(array: np.ndarray) -> str:
    return f"{shortened(str(array.dtype))} of shape {list(array.shape[:5])}"
