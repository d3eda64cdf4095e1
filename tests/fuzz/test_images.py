"""Images of every format, mode and shape, damaged and with headers that lie, as CLIP sees them.

The command that captions is not called: it checks its images with `decode`, as here.
"""

from __future__ import annotations

import functools
import io
import pathlib
import random
import struct
import zlib

import numpy as np
from PIL import Image

from har_jax.data.decode import Files
from har_jax.data.images import Preprocessor
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

FORMATS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "GIF": ("P", "L", "RGBA"),
    "BMP": ("RGB", "P", "1"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK", "LAB", "YCbCr"),
    "JPEG2000": ("RGB", "RGBA", "L", "I;16"),
    "PPM": ("RGB", "L", "1", "I;16", "F"),
    "ICO": ("RGBA",),
    "TGA": ("RGB", "P"),
    "PCX": ("RGB", "L"),
    "SGI": ("RGB", "L"),
    "EPS": ("RGB", "L"),
    "DDS": ("RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "IM": ("RGB", "F"),
}
SIZES = [(1, 1), (7, 5), (40, 60), (90, 40), (1, 700), (900, 2), (3, 30_000), (30_000, 1)]
SIDES = [0, 1, 2, 255, 20_000, 65_535, 2**20, 2**27, 2**31 - 1, 2**32 - 1]


@functools.cache
def encoded(kind: str, mode: str, size: tuple[int, int], option: int) -> bytes:
    """A picture in a format; b"" where the format cannot hold it."""
    rng = np.random.default_rng(option)
    values = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(values)
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(values[..., 0].astype(kinds[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, values.tobytes())
    elif mode == "P":
        image = image.quantize(8)
    else:
        image = image.convert(mode)
    options: dict[str, object] = {}
    if option == 1 and kind in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"save_all": True, "append_images": [image, image]}
    if option == 2 and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    if option == 2 and mode == "P" and kind in ("PNG", "GIF"):
        options["transparency"] = 3
    if option == 3 and kind == "TIFF":
        options = {"compression": "tiff_lzw"}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return b""
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG whose header says what it likes, and which may be far smaller than that."""

    def chunk(name: bytes, data: bytes) -> bytes:
        sum32 = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + sum32

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def lying(rng: random.Random) -> bytes:
    """A header of any size before little data."""
    sides = [rng.choice(SIDES), rng.choice([*SIDES, 1, 2])]
    rng.shuffle(sides)
    width, height = sides
    kind = rng.randrange(4)
    rows = bytes(min(width // 8 + 1, 1 << 20)) * min(height, 40)
    if kind < 2:
        depth, colour = rng.choice([(1, 0), (8, 0), (8, 2), (8, 6), (16, 4), (8, 3), (3, 9)])
        return png(width, height, depth, colour, rows)
    if kind == 2:
        return b"P5 %d %d 255\n" % (width, height) + rows[:4000]
    return b"GIF89a" + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + rng.randbytes(60)


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    what = rng.random()
    if what < 0.25:
        data = lying(rng)
    elif what < 0.3:  # whole, and as long and thin as PNG packs it
        sides = [rng.choice([1, 2, 3]), rng.choice([1_000, 100_000, 1_000_000])]
        rng.shuffle(sides)
        width, height = sides
        data = png(width, height, 1, 0, (b"\0" + bytes(width // 8 + 1)) * height)
    else:
        kind = rng.choice(list(FORMATS))
        data = encoded(kind, rng.choice(FORMATS[kind]), rng.choice(SIZES), rng.randrange(4))
        if rng.random() < 0.75:
            data = hostile.damaged(rng, data)
        if rng.random() < 0.05:
            data = rng.choice(
                [b"", b"\0" * 50, b"\xff\xd8", b"GIF89a", b"II*\0" + rng.randbytes(99)]
            )
    path = folder / "image"
    path.write_bytes(data)
    size = rng.choice([1, 17, 224, 336])
    preprocessor = rng.choice(
        [
            Preprocessor.for_size(size),
            Preprocessor(0, (size, 2 * size), (size, size), do_center_crop=rng.random() < 0.5),
            Preprocessor(shortest_edge=size, crop_size=(2 * size, size), resample=rng.randrange(6)),
            Preprocessor(do_resize=False, crop_size=(size, size)),
        ]
    )

    def see() -> None:
        files = Files([path])
        pixels = preprocessor.pixels(files.read(0), name=rng.choice([str(path), "n\n" * 600]))
        assert pixels.shape == (*preprocessor.output_size, 3) and pixels.dtype == np.uint8

    return Case(see)


def test_images(tmp_path, record_property):
    attempt("images", 2500, draw, tmp_path, record_property)


def paths(rng: random.Random, folder: pathlib.Path) -> Case:
    name = hostile.text(rng)
    if rng.random() < 0.5:
        name = str(folder / "a") + name
    return Case(lambda: Files([name]).check())


def test_names_of_images(tmp_path, record_property, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt("image names", 300, paths, tmp_path, record_property)
