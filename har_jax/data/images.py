"""From the bytes of any photograph to the array that a CLIP vision tower was trained on.

`decode` makes an upright RGB image of whatever the file holds; `Preprocessor` then does what
Hugging Face's `CLIPImageProcessor` (PIL backend) does, bit for bit: resize, centre crop, rescale,
normalise. The one intended difference lies in `decode`: HF feeds a camera's sideways EXIF picture
to the model as it is stored, here it is turned upright, as a person would see it. (And 16-bit
grayscale keeps its high byte, where Pillow's conversion, hence HF, may clip it to white.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from har_jax.data.preprocessor_config import read_settings
from har_jax.errors import UserError

ImageLike = Image.Image | bytes | bytearray | memoryview | str | os.PathLike[str]

VERSION = 1
"""Of what this module makes of the same settings; raise it when any pixel changes."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def decode(image: ImageLike, *, name: str | None = None, upright: bool = True) -> Image.Image:
    """An RGB image of 8 bits, fully loaded.

    Grayscale, palette and CMYK are converted, transparency is laid over white (as HF does), of an
    animation the first frame is taken, 16-bit grayscale keeps its high byte.

    Args:
      image: encoded bytes, a path, or a PIL image.
      name: what to call it in errors; a path by default.
      upright: obey the EXIF orientation.

    Raises:
      UserError: no such file, empty, not an image, cut off, or too large to be one.
    """
    if isinstance(image, (str, os.PathLike)):
        name, image = name or os.fspath(image), _read(image)
    name = name or "given as bytes"
    if not isinstance(image, Image.Image):
        data = bytes(image)
        if not data:
            raise UserError(f"image {name} is empty (0 bytes); give a JPEG or PNG file")
        image = _open(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, palette transparency: nothing to act upon
            image.load()
            # Asked first, because exif_transpose copies even an image that lies upright.
            if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
    except _DECODING_ERRORS as error:
        raise UserError(f"image {name} does not decode: {error}; is the file cut off?") from error


class Files:
    """Image files as `data.protocols.Images`; each is read when it is asked for.

    Attributes:
      ids: 0, 1, ... in the order of the paths.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.paths, self.ids = list(paths), range(len(paths))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """Raises UserError where there is no such file, or it cannot be read."""
        return _read(self.paths[i])

    def name_of(self, i: int) -> str:
        """What errors call an image."""
        return os.fspath(self.paths[i])

    def check(self) -> None:
        """Decodes all of them; raises UserError at the first that is no image."""
        for path in self.paths:
            decode(path)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"image {os.fspath(path)} cannot be read: {error.strerror or error}; give image files"
        ) from error


# What Pillow's plugins raise on broken files.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error,
    OverflowError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip


def _open(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UserError(
            f"image {name} is not an image that Pillow knows ({len(data)} bytes, beginning "
            f"{data[:12]!r}); give a JPEG or PNG file"
        ) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name} is too large: {error}; scale it down first") from error
    except _DECODING_ERRORS as error:
        raise UserError(f"image {name} does not decode: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits (or 32 that hold 16): the high byte, as for 16-bit RGB
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
        kept = min(width, self.crop_size[1]) if self.do_center_crop else width
        vertical_first = 0 < image.height - height > 2 * (image.width - width)
        if kept < width and not vertical_first:
            image = image.resize((width, image.height), resample=self.resample)
            left = (width - kept) // 2
            image = image.crop((left, 0, left + kept, image.height))
            width = kept
        return image.resize((width, height), resample=self.resample)

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
    h, w = image.shape[:2]
    if h < height or w < width:
        padded = np.zeros((max(h, height), max(w, width), 3), image.dtype)
        top, left = -(-(padded.shape[0] - h) // 2), -(-(padded.shape[1] - w) // 2)
        padded[top : top + h, left : left + w] = image
        # HF takes the margin of the image before padding, then shifts it by the padding.
        top, left = (h - height) // 2 + top, (w - width) // 2 + left
        return padded[max(0, top) : top + height, max(0, left) : left + width]
    top, left = (h - height) // 2, (w - width) // 2
    return image[top : top + height, left : left + width]
