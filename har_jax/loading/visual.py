"""What a caller gives as images, as rows that a captioner reads: `LoadedCaptioner.generate` and its
sisters all come through here.

    one image       a path, encoded bytes, a PIL image, or uint8 [H,W,3]
    many images     a list, an iterator or a generator of those, or uint8 [B,H,W,3]
    ready pixels    float [B,H,W,3], preprocessed already
    features        float [B,S,Dv], what the encoder would say

uint8 is an image, of any size, and is preprocessed as a file is; a float array is what comes after
preprocessing. Lists and iterators may hold rows of the last two as well, all of one kind.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.foreign import shortened

Single = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image
_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)

ALLOWED = (
    "a path, encoded bytes, a PIL image, a uint8 array [H,W,3], a list or an iterator of those, a "
    "uint8 array [B,H,W,3], or floats: preprocessed pixels [B,H,W,3] or features [B,S,Dv]"
)


@dataclasses.dataclass(frozen=True)
class Given:
    """Images as they were given.

    Attributes:
      rows: of each image float32 pixels [H,W,3] or features [S,Dv], made when it is asked for.
      single: one image was given, not a list of one.
      count: how many there are; None of an iterator, which only its end tells.
    """

    rows: Iterator[np.ndarray]
    single: bool
    count: int | None

    def batches(self, size: int, fit: Callable[[int], int]) -> Iterator[tuple[np.ndarray, int]]:
        """Batches [size, ...] of one shape, and how many rows of each are images: the last one is
        filled up with its last image. Where a single batch holds all, it has `fit(count)` rows."""
        first = True
        while chunk := list(itertools.islice(self.rows, size)):
            if first and len(chunk) < size:
                size = fit(len(chunk))
            first = False
            yield padded(np.stack(chunk), size), len(chunk)


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until there are `size`, so that every batch has one shape."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def read(images: Any, preprocessor: Preprocessor | None, features_shape: tuple[int, int]) -> Given:
    """What was given, of any of the kinds that the module's docstring lists.

    Args:
      preprocessor: of images; None: only features are read.
      features_shape: (S, Dv) of an image's features.

    Raises:
      UserError: something else was given. An image that does not decode, or a row of another shape,
        raises it when its turn comes, with its number.
    """
    reader = _Reader(preprocessor, features_shape)
    images, single = _listed(images)
    if single:
        return Given(iter([reader.row(images, "given")]), True, 1)
    try:
        count = len(images)
    except TypeError:
        count = None
    return Given(reader.rows(images), False, count)


def _listed(images: Any) -> tuple[Any, bool]:
    """One image, or an iterable of them; and which of the two."""
    if isinstance(images, _SINGLE):
        return images, True
    if isinstance(images, np.ndarray | jax.Array):
        if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OUT":
            return images.tolist(), False  # of paths, or of images
        array = _as_numpy(images)
        is_image = array.dtype == np.uint8
        if is_image and array.ndim == 3:
            return array, True
        if array.ndim == 4 or (array.ndim == 3 and not is_image):
            return array, False
        raise UserError(f"{_described(array)} is no images; give {ALLOWED}")
    if isinstance(images, Iterable) and not isinstance(images, Mapping | Set):
        return images, False
    raise UserError(f"{_described(images)} is no images; give {ALLOWED}")


@dataclasses.dataclass(frozen=True)
class _Reader:
    preprocessor: Preprocessor | None
    features_shape: tuple[int, int]

    def rows(self, images: Iterable[Any]) -> Iterator[np.ndarray]:
        shape = None
        for i, image in enumerate(images):
            row = self.row(image, f"[{i}] of those given")
            shape = shape or row.shape
            if row.shape != shape:
                raise UserError(
                    f"image [{i}] is given as {_kind(row)}, the first as {_kind(shape)}; give all "
                    "images of a call in one way"
                )
            yield row

    def row(self, image: Any, name: str) -> np.ndarray:
        """Pixels [H,W,3] or features [S,Dv] of one image."""
        if isinstance(image, _SINGLE):
            path = isinstance(image, str | os.PathLike)
            return self._preprocessor()(image, name=None if path else name)
        if not isinstance(image, np.ndarray | jax.Array):
            raise UserError(f"image {name} is {_described(image)}; give {ALLOWED}")
        array = _as_numpy(image)
        if array.dtype == np.uint8:
            return self._preprocessor()(array, name=name)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f"image {name} is {_described(array)}; an array of images is uint8, one of "
                "preprocessed pixels or of features is of floats"
            )
        self._check(array, name)
        return array.astype(np.float32)

    def _preprocessor(self) -> Preprocessor:
        if self.preprocessor is None:
            raise UserError(
                "this captioner was trained on imported features and cannot encode images; give "
                f"an array of features [B,S,Dv], here [B,{_sizes(self.features_shape)}]"
            )
        return self.preprocessor

    def _check(self, array: np.ndarray, name: str) -> None:
        features = self.features_shape
        pixels = (*self.preprocessor.output_size, 3) if self.preprocessor is not None else None
        if array.shape in (features, pixels):
            return
        wanted = f"features [B,{_sizes(features)}]"
        if pixels is not None:
            wanted = f"preprocessed pixels [B,{_sizes(pixels)}] or {wanted}, and any image as uint8"
        raise UserError(
            f"image {name} is {_described(array)}; of floats this captioner reads {wanted}"
        )


def _as_numpy(array: np.ndarray | jax.Array) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise UserError(
            "the array of images is spread over several processes; every process gives all images, "
            "as NumPy arrays or files"
        )
    return np.asarray(array)


def _kind(row: np.ndarray | tuple[int, ...]) -> str:
    shape = row if isinstance(row, tuple) else row.shape
    return f"{'pixels' if len(shape) == 3 else 'features'} [{_sizes(shape)}]"


def _sizes(shape: Iterable[int]) -> str:
    return ",".join(map(str, shape))


def _described(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"an array of {given.dtype} [{_sizes(given.shape)}]"
    if given is None or isinstance(given, int | float | complex):
        return shortened(repr(given))
    return f"of type {type(given).__module__}.{type(given).__qualname__}"
