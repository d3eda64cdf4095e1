"""From the bytes of any photograph to an upright RGB image; the one place that decodes.

What may be opened is bounded before it is decoded: a few formats that are well kept, and so many
pixels. `prepare`, `caption`, training and reports all come through here.
"""

from __future__ import annotations

import io
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from har_jax.errors import UserError
from har_jax.foreign import check_file, shortened

ImageLike = Image.Image | np.ndarray | bytes | bytearray | memoryview | str | os.PathLike[str]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What is opened. Others that Pillow knows start programs (EPS) or are hardly ever looked after."""

MAX_PIXELS = 1 << 26
"""Of an image as it is stored, 8192 x 8192. Decoding takes up to 16 bytes for each."""

_BAND = 1 << 22  # pixels that are converted at a time
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(image: ImageLike, *, name: str | None = None, upright: bool = True) -> Image.Image:
    """An RGB image of 8 bits, fully loaded.

    Grayscale, palette and CMYK are converted, transparency is laid over white (as HF does), of an
    animation the first frame is taken, 16-bit grayscale keeps its high byte. Floats and 32-bit
    integers are refused: nothing in a file says which of their values are black and white.

    Args:
      image: encoded bytes, a path, a PIL image, or a uint8 array [H,W,3].
      name: what to call it in errors; a path by default.
      upright: obey the EXIF orientation.

    Raises:
      UserError: no such file, empty, not an image, cut off, too large, or of unknown range.
    """
    if isinstance(image, (str, os.PathLike)):
        name, image = name or os.fspath(image), read(image)
    name = shortened(" ".join((name or "given as bytes").split()))
    if hasattr(image, "__array__") and not isinstance(image, Image.Image):
        image = _of_array(np.asarray(image), name)
    if not isinstance(image, Image.Image):
        data = bytes(image)
        if not data:
            raise UserError(f"image {name} is empty (0 bytes); give a JPEG or PNG file")
        image = _open(data, name)
    _check(image, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, palette transparency: nothing to act upon
            image.load()
            # Asked first, because turning copies even an image that lies upright.
            turned = _TURNED.get(_orientation(image)) if upright else None
            rgb = _to_rgb(image)
            return rgb if turned is None else rgb.transpose(turned)
    except Exception as error:  # Pillow's plugins raise whatever they meet in a broken file
        raise UserError(
            f"image {name} does not decode: {_told(error)}; is the file cut off?"
        ) from error


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
        return read(self.paths[i])

    def name_of(self, i: int) -> str:
        """What errors call an image."""
        return os.fspath(self.paths[i])

    def check(self) -> None:
        """Decodes all of them; raises UserError at the first that is no image."""
        for path in self.paths:
            decode(path)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
      UserError: no such file, or one that cannot be read.
    """
    try:
        check_file(path)
        return pathlib.Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL, or half a character, in the name
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        name = shortened(" ".join(os.fspath(path).split()))
        raise UserError(f"image {name} cannot be read: {why}; give image files") from error


def _of_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        shape = ",".join(map(str, array.shape))
        raise UserError(
            f"image {name} is an array of {array.dtype} [{shape}]; an image's is of uint8 "
            "[H,W,3], its last axis red, green and blue (PIL.Image.fromarray(...).convert('RGB') "
            "makes one)"
        )
    return Image.fromarray(array)


def _open(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UserError(
            f"image {name} is not an image in one of {', '.join(FORMATS)} ({len(data)} bytes, "
            f"beginning {data[:12]!r}); give a JPEG or PNG file"
        ) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name} is too large: {error}; scale it down first") from error
    except Exception as error:  # as in `decode`
        raise UserError(f"image {name} does not decode: {_told(error)}") from error


def _check(image: Image.Image, name: str) -> None:
    """Of what the header says, before memory is taken for it."""
    width, height = image.size
    if not width * height:
        raise UserError(f"image {name} has no pixels ({width} x {height}); leave it out")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"image {name} is too large: {width} x {height} pixels, and at most {MAX_PIXELS:,} are "
            "read; scale it down first"
        )
    # PGM alone says what is white, and Pillow scales its values to 16 bits. PNG: older Pillows.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "floats" if image.mode == "F" else "integers"
        raise UserError(
            f"image {name} holds {kind} of 32 bits, and no rule says which are black and white; "
            "save it with 8 or 16 bits"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF's; 1, upright, where there is none that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `decode`; the picture itself is whole
        return 1


def _told(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _in_bands(image, _high_byte)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _in_bands(image, _over_white)
    return image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of the image, some rows at a time: what lies between takes little memory."""
    rows = max(1, _BAND // max(1, image.width))
    made = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        made.paste(convert(image.crop(box)), box)
    return made


def _high_byte(image: Image.Image) -> Image.Image:
    """16 bits (or 32 that hold 16): the high byte, as Pillow takes it of 16-bit RGB."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
