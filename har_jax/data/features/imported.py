"""Features that some other program extracted: an array and the ids of its images.

The array is `[N,Dv]` (one vector per image: for a pooled projector) or `[N,S,Dv]` (tokens: for a
patch projector), as `numpy.save` writes it; ids are a `.npy`, a JSON list, or a text file of one id
per line, in the order of the rows; `har_jax.ids` reads them, numbers or names. Any encoder can be
tried that way: nothing of it is needed here.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped, UInt64

from har_jax.arrays import read_npy
from har_jax.data.dataset import Split
from har_jax.data.features.cache import FeatureKind, digest_of, known_digests
from har_jax.errors import UserError
from har_jax.foreign import read_text, read_typed, shortened
from har_jax.ids import Id, NoId, read_id

_BATCH = 256  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Import:
    """An array of features, memory-mapped, and where each image's row is."""

    path: pathlib.Path
    array: Shaped[np.ndarray, "N S Dv"]  # of a dtype that is checked
    kind: FeatureKind
    row_of: dict[Id, int]

    def known_as(self, numbers: Mapping[Id, int]) -> Import:
        """With the numbers that a dataset has for the ids (`evaluation.references.numbers_of`).

        Raises:
          UserError: two of the ids are of one image.
        """
        written = [numbers.get(image_id, image_id) for image_id in self.row_of]
        return dataclasses.replace(self, row_of=_rows(written, self.path))

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
    written = _load_ids(pathlib.Path(ids))
    if len(written) != len(values):
        raise UserError(
            f"{ids} has {len(written):,} ids, but {path} has {len(values):,} rows; they must match"
        )
    row_of = _rows(written, ids)
    kind: FeatureKind = "patch" if values.ndim == 3 else "pooled"
    return Import(path, values if values.ndim == 3 else values[:, None], kind, row_of)


def _rows(written: Sequence[Id], where: object) -> dict[Id, int]:
    row_of = {image_id: row for row, image_id in enumerate(written)}
    if len(row_of) < len(written):
        twice = collections.Counter(written).most_common(1)[0][0]
        raise UserError(
            f"{where}: image id {shortened(ascii(twice), 60)} occurs twice; ids must be unique"
        )
    return row_of


def _load_ids(path: pathlib.Path) -> list[Id]:
    """The ids of a file, as `ids.read_id` reads them."""
    if path.suffix == ".npy":
        array = np.asarray(read_npy(path, "image ids"))
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise UserError(
                f"{path} holds {_described(array)}; image ids are a flat list of numbers or names"
            )
        written = array.tolist()
    elif path.suffix == ".json":
        written = read_typed(path, list[int | float | str], "a JSON list of image ids")
    else:
        lines = read_text(path, "the image ids, one per line").split("\n")
        written = [line.strip() for line in lines if line.strip()]
    found = []
    for number, value in enumerate(written, 1):
        try:
            found.append(read_id(value))
        except NoId as error:
            why = f"{path} entry {number}: {error}"
            raise UserError(f"{why}; give an image id for each row") from None
    return found


def _described(array: np.ndarray) -> str:
    return f"{shortened(str(array.dtype))} of shape {list(array.shape[:5])}"
