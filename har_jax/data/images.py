"""From a photograph to the array that a vision tower was trained on.

`decode.decode` makes an upright RGB image of whatever the file holds; `Preprocessor` then does what
Hugging Face's `CLIPImageProcessor` (PIL backend) does, bit for bit: resize, centre crop, rescale,
normalise. So it does for SigLIP's processor, and for DINOv2's, which is called a BiT's. The one
intended difference lies in `decode`: HF feeds a camera's sideways EXIF picture to the model as it
is stored, here it is turned upright, as a person would see it. (And 16-bit grayscale keeps its high
byte, where Pillow's conversion, hence HF, may clip it to white.)

Only what the crop keeps is made: of a picture of a few kilobytes, a million pixels high and one
wide, CLIP's resize alone would have 50 billion. Beyond `_MOST_RESIZED` pixels, which is sides of
more than 1 to 300, a byte may differ from HF's by rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from har_jax.data.decode import ImageLike, decode
from har_jax.data.preprocessor_config import read_settings
from har_jax.errors import UserError

VERSION = 1
"""Of what this module makes of the same settings; raise it when any pixel changes."""

_MOST_RESIZED = 1 << 24  # pixels that a resize, or the first of its two passes, may make

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _Stretch(NamedTuple):
    """The pixels low..high of a side, of which near..far become `kept` pixels of the result."""

    low: int
    high: int
    near: float
    far: float
    kept: int

    @classmethod
    def of(cls, side: int, resized: int, kept: int) -> _Stretch:
        """The central `kept` of the `resized` pixels that a side is resized to."""
        scale = side / resized
        first = (resized - kept) // 2 * scale
        # Filters reach 3 pixels far, of the result where that is the smaller one.
        reach = math.ceil(4 * max(1.0, scale))
        low = max(0, int(first) - reach)
        high = min(side, math.ceil(first + kept * scale) + reach)
        return cls(low, high, first - low, min(first - low + kept * scale, high - low), kept)


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Image to float32 [H, W, 3], as a `preprocessor_config.json` says.

    Attributes:
      shortest_edge: the shorter side is resized to it, keeping the shape; 0: see `size`.
      size: (height, width) to resize to, whatever the shape; used if `shortest_edge` is 0.
      crop_size: (height, width) cut from the centre (padded with black where too small).
      do_resize, do_center_crop: whether these are done at all.
      rescale_factor: of the values 0..255; 1 for none.
      image_mean, image_std: of the three channels, after rescaling.
      resample: Pillow's number of the filter; 3 is bicubic.
    """

    shortest_edge: int = 224
    size: tuple[int, int] = (224, 224)
    crop_size: tuple[int, int] = (224, 224)
    do_resize: bool = True
    do_center_crop: bool = True
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    resample: int = int(Image.Resampling.BICUBIC)

    def __post_init__(self) -> None:
        # uint8 has 256 values, so rescaling and normalising is a table. Made in HF's order and
        # precision (float64 product, then float32) it gives HF's bits.
        values = (np.arange(256).astype(np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        object.__setattr__(self, "_table", (values[:, None] - mean) / std)

    @classmethod
    def for_size(cls, side: int) -> Preprocessor:
        """CLIP's preprocessing for square inputs of `side` pixels."""
        return cls(shortest_edge=side, size=(side, side), crop_size=(side, side))

    @classmethod
    def from_hf(cls, directory: str | os.PathLike[str]) -> Preprocessor:
        """Of a Hugging Face model directory (`preprocessor_config`).

        Raises:
          UserError: no such file, not JSON, or a step that this class does not have.
        """
        return cls(**read_settings(directory))

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `preprocessor_config.json` that means the same."""
        height, width = self.size
        edge = self.shortest_edge
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": self.do_resize,
            "size": {"shortest_edge": edge} if edge else {"height": height, "width": width},
            "resample": self.resample,
            "do_center_crop": self.do_center_crop,
            "crop_size": {"height": self.crop_size[0], "width": self.crop_size[1]},
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of every result.

        Raises:
          UserError: it depends on the image, so images could not be batched.
        """
        if self.do_center_crop:
            return self.crop_size
        if self.do_resize and not self.shortest_edge:
            return self.size
        raise UserError("the image processor neither crops nor resizes to one size; set crop_size")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the pixels, JSON-able: the settings, and the version of this module."""
        return {**self.to_hf(), "har_jax_version": VERSION}

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides the pixels."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def __call__(
        self, image: ImageLike, *, name: str | None = None
    ) -> Float32[np.ndarray, "H W 3"]:
        """Pixels of one image (bytes, path or PIL), normalised.

        Raises:
          UserError: the image does not decode (see `decode`).
        """
        return self.normalise(self.pixels(image, name=name))

    def pixels(self, image: ImageLike, *, name: str | None = None) -> np.ndarray:
        """uint8 [H, W, 3]: decoded, resized and cropped, not yet normalised."""
        rgb = decode(image, name=name)
        if self.do_resize:
            rgb = self._resize(rgb)
        array = np.asarray(rgb)
        return _center_crop(array, *self.crop_size) if self.do_center_crop else array

    def normalise(self, pixels: np.ndarray) -> Float32[np.ndarray, "*B H W 3"]:
        """Rescales and normalises uint8 [..., H, W, 3]."""
        table = self._table  # type: ignore[attr-defined]
        out = np.empty(pixels.shape, np.float32)
        for channel in range(3):
            # "clip", of a byte into 256 entries: the default checks, and so works in a buffer.
            np.take(table[:, channel], pixels[..., channel], out=out[..., channel], mode="clip")
        return out

    def _resize(self, image: Image.Image) -> Image.Image:
        """Resized, and where that changes no bit, already without columns that the crop cuts off.

        Pillow resizes in two passes and rounds to bytes between them, so their order shows in the
        result. Where the horizontal pass comes first, columns that the crop cuts off need no
        vertical pass, and two calls give the bits of one. From version 13 on Pillow begins with
        the vertical pass where that takes away more than twice as many rows as the horizontal one
        takes columns (found by experiment; `tests/data/test_images.py` tries every order). A whole
        image is then resized in one call.
        """
        width, height = self._resized(*image.size)
        vertical_first = 0 < image.height - height > 2 * (image.width - width)
        if max(height, image.height) * width > _MOST_RESIZED:
            return self._resize_long(image, width, height, vertical_first)
        kept = min(width, self.crop_size[1]) if self.do_center_crop else width
        if kept < width and not vertical_first:
            image = image.resize((width, image.height), resample=self.resample)
            left = (width - kept) // 2
            image = image.crop((left, 0, left + kept, image.height))
            width = kept
        return image.resize((width, height), resample=self.resample)

    def _resize_long(
        self, image: Image.Image, width: int, height: int, vertical_first: bool
    ) -> Image.Image:
        """What the crop keeps of an image resized to width x height, from what it is made of."""
        crop_height, crop_width = self.crop_size if self.do_center_crop else (height, width)
        columns = _Stretch.of(image.width, width, min(width, crop_width))
        rows = _Stretch.of(image.height, height, min(height, crop_height))
        if rows.kept * columns.kept > _MOST_RESIZED:
            raise UserError(
                f"an image of {image.width} x {image.height} is resized to {width} x {height} and "
                "not cropped, which is too large; set crop_size"
            )
        # Pillow takes a box in single precision, good for small numbers: hence both crop and box.
        image = image.crop((columns.low, rows.low, columns.high, rows.high))

        def horizontal(image: Image.Image) -> Image.Image:
            box = (columns.near, 0.0, columns.far, float(image.height))
            return image.resize((columns.kept, image.height), self.resample, box)

        def vertical(image: Image.Image) -> Image.Image:
            box = (0.0, rows.near, float(image.width), rows.far)
            return image.resize((image.width, rows.kept), self.resample, box)

        return horizontal(vertical(image)) if vertical_first else vertical(horizontal(image))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; the longer side is rounded down, as HF does."""
        edge = self.shortest_edge
        if not edge:
            return self.size[1], self.size[0]
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre of [h, w, 3] as [height, width, 3], padded with zeros where h or w is smaller.

    HF rounds the margin down when cropping and up when padding.
    """
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    inside = image[max(0, top) : top + height, max(0, left) : left + width]
    if inside.shape[:2] == (height, width):
        return inside
    padded = np.zeros((height, width, 3), image.dtype)
    top, left = max(0, -top), max(0, -left)
    padded[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return padded
