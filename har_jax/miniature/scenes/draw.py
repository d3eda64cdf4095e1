"""Scenes to pixels, in whole numbers only, so that a seed gives the same image everywhere.

A shape is a test on a grid of 4 x 4 points per pixel with integer coordinates; the points that
pass give the pixel's coverage (that is the antialiasing). No drawing library is asked, whose next
version may round an ellipse otherwise; Pillow only writes the PNG.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.scenes.world import SIDE, Scene, Thing

POINTS = 4  # per pixel and axis

RGB = {
    "red": (214, 36, 36),
    "orange": (245, 130, 22),
    "yellow": (248, 218, 40),
    "green": (38, 160, 62),
    "blue": (36, 84, 214),
    "purple": (126, 46, 168),
    "pink": (250, 140, 190),
    "white": (246, 246, 246),
}
PALE = ("yellow", "orange", "pink", "white")  # their patterns are dark, those of the others light

# Outer radius 1000, inner 420, one tip up; and the lower part of a heart.
STAR = ((0, -1000), (247, -340), (951, -309), (399, 130), (588, 809))
STAR += ((0, 420), (-588, 809), (-399, 130), (-951, -309), (-247, -340))
HEART_TIP = ((-935, -120), (935, -120), (0, 980))


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [64, 64, 3], as an encoded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def render(scene: Scene, dice: Dice) -> np.ndarray:
    """The scene as uint8 [64, 64, 3]; `dice` gives the grain of the ground and the tints."""
    canvas = _ground(scene.ground, dice)
    order = list(scene.things)
    if scene.relation == "inside":  # what is inside is drawn over what goes around it
        order[0], order[1] = order[1], order[0]
    for thing in order:
        _draw(canvas, thing, dice)
    return canvas.astype(np.uint8)


def _ground(ground: str, dice: Dice) -> np.ndarray:
    """int64 [64, 64, 3] of a ground with its own grain."""
    # RandomState's stream is frozen for good (NumPy's NEP 19), unlike Generator's.
    grain = np.random.RandomState(dice.between(0, 2**31 - 1)).randint(0, 256, (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    shift = dice.between(0, SIDE - 1)
    light = dice.between(-8, 8)
    if ground == "grass":
        base, amount = (74, 150, 58), grain % 24 + (grain[:1] % 5 - 2) * 7
    elif ground == "sea":
        swell = np.abs((x + shift) % 16 - 8) // 3
        base, amount = (44, 116, 190), np.where((y + swell + shift) % 9 < 2, 40, grain % 6)
    elif ground == "night":
        base, amount = (16, 18, 46), np.where((grain < 2) & (y % 2 == x % 2), 200, grain % 5)
    elif ground == "sand":
        base, amount = (222, 190, 132), np.where(grain < 22, -40, grain % 12)
    elif ground == "snow":
        drift = np.abs((x + 2 * shift) % 32 - 16) // 4
        base, amount = (234, 240, 248), np.where((y + drift + shift) % 16 < 2, -16, grain % 7)
    elif ground == "wall":
        base, amount = (140, 142, 148), grain % 4
    else:
        plank = (y + shift) % 13 == 0
        base, amount = (142, 94, 54), np.where(plank, -50, grain[:, :1] % 16 + grain % 4)
    canvas = np.array(base)[None, None, :] + amount[:, :, None] + light
    return np.clip(canvas, 0, 255)


def _draw(canvas: np.ndarray, thing: Thing, dice: Dice) -> None:
    """Paints one thing into the canvas [64, 64, 3], in place."""
    fill = np.array([c + dice.between(-9, 9) for c in RGB[thing.colour]])
    pattern = np.array((44, 44, 52) if thing.colour in PALE else (244, 244, 244))
    colours = np.stack([pattern, fill, fill * 2 // 5])  # the last is the rim's
    counts = _points(thing.shape, thing.texture, thing.width)
    left, top = thing.x - thing.width // 2, thing.y - thing.width // 2
    # Sum the 4 x 4 points of each pixel, then lay what of the box is inside the canvas over it.
    w = thing.width
    y0, y1, x0, x1 = max(top, 0), min(top + w, SIDE), max(left, 0), min(left + w, SIDE)
    counts = counts[y0 - top : y1 - top, x0 - left : x1 - left]
    cover = counts.sum(2, keepdims=True)
    under = canvas[y0:y1, x0:x1]
    points = POINTS * POINTS
    mixed = (under * (points - cover) + counts @ colours + points // 2) // points
    canvas[y0:y1, x0:x1] = np.clip(mixed, 0, 255)


@functools.cache
def _points(shape: str, texture: str, width: int) -> np.ndarray:
    """int64 [width, width, 3]: how many points of each pixel are pattern, plain, and rim."""
    n = width * POINTS
    v, u = np.mgrid[:n, :n]
    body = _inside(shape, 2 * u + 1 - n, 2 * v + 1 - n, n)
    # The rim, one pixel wide and darker, keeps a thing visible on any ground.
    core = body & _inside(shape, 2 * u + 1 - n, 2 * v + 1 - n, n - 2 * POINTS)
    marked = _pattern(texture, u - n // 2, v - n // 2)
    parts = np.stack([core & marked, core & ~marked, body & ~core], axis=-1)
    return parts.reshape(width, POINTS, width, POINTS, 3).sum((1, 3))


def _pattern(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points (offsets from the centre, 4 per pixel) carry the pattern's colour."""
    if texture == "striped":
        return (v + 6) // 12 % 2 == 1
    if texture == "dotted":
        du, dv = (u + 14) % 28 - 14, (v + 14) % 28 - 14
        return du * du + dv * dv < 64
    if texture == "checkered":
        return (u // 18 + v // 18) % 2 == 1
    return np.zeros_like(u, dtype=bool)


def _inside(shape: str, u: np.ndarray, v: np.ndarray, n: int) -> np.ndarray:
    """Which points belong to the shape; u to the right, v down, the shape reaching to +-n."""
    square = u * u + v * v
    if shape == "circle":
        return square <= n * n
    if shape == "square":
        return np.maximum(abs(u), abs(v)) * 100 <= 90 * n
    if shape == "triangle":
        return (abs(u) * 185 <= (v + n) * 100) & (v * 100 <= 85 * n)
    if shape == "star":
        return _polygon(STAR, u, v, n)
    if shape == "ring":
        return (square <= n * n) & (square * 100 > 36 * n * n)
    if shape == "heart":
        lobe = (abs(u) * 100 - 46 * n) ** 2 + (v * 100 + 36 * n) ** 2 <= (54 * n) ** 2
        return lobe | _polygon(HEART_TIP, u, v, n)
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) * 100 <= 32 * n) & (np.maximum(abs(u), abs(v)) <= n)
    # crescent: a disc with a bite taken out of its right side
    return (square <= n * n) & ((u * 100 - 58 * n) ** 2 + (v * 100 + 10 * n) ** 2 > (78 * n) ** 2)


def _polygon(corners: tuple[tuple[int, int], ...], u: np.ndarray, v: np.ndarray, n: int):
    """Even-odd rule over corners in thousandths of n, exact in integers."""
    inside = np.zeros(u.shape, dtype=bool)
    u, v = u * 1000, v * 1000
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        x0, y0, x1, y1 = x0 * n, y0 * n, x1 * n, y1 * n
        spans = (v < y0) != (v < y1)
        side = (u - x0) * (y1 - y0) - (x1 - x0) * (v - y0)
        inside ^= spans & ((side < 0) == (y1 > y0))
    return inside
