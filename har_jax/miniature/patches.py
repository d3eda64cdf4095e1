"""What each patch of a scene shows, as labels for the vision tower of a miniature CLIP.

Among the captions of a batch a picture is found by its colours and its ground: after 60,000 pairs a
CLIP tells a star from a moon hardly better than by chance, be they of 4,000 pictures or of 24,000.
OpenAI's learnt shapes from 400 million pairs; here the generator tells what lies on each patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from har_jax.miniature.scenes.world import COLOURS, SHAPES, Scene
from har_jax.types import Int, UInt

MOST_THINGS = 4
CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1)  # of shapes and of colours; the last is "none"
COVERED = 0.12  # a thing lies on a patch if its box covers so much of it


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures, cropped and not normalised, the captions of each, and of scenes the things."""

    pixels: UInt[np.ndarray, "N H W 3"]
    captions: Sequence[Sequence[str]]
    boxes: Int[np.ndarray, "N K F"] | None = None  # as `boxes` makes them


def boxes(scenes: Sequence[Scene]) -> Int[np.ndarray, "N K F"]:
    """(shape, colour, x, y, width) of the K things of each scene; width 0 where there is none."""
    found = np.zeros((len(scenes), MOST_THINGS, 5), np.int32)
    for i, scene in enumerate(scenes):
        for k, t in enumerate(scene.things):
            found[i, k] = SHAPES.index(t.shape), COLOURS.index(t.colour), t.x, t.y, t.width
    return found


def labels(
    boxes_bkf: Int[np.ndarray, "B K F"], moved_b2: Int[np.ndarray, "B 2"], side: int, patch: int
) -> Int[np.ndarray, "B S 2"]:
    """Shape and colour of what lies on each patch of images that were moved down and right.

    Where several things lie on a patch it is the smallest: it is drawn in front, or easily missed.

    Args:
      moved_b2: pixels along y and along x.
      side, patch: of the image and of a patch, in pixels.
    """
    shape_bk, colour_bk, x_bk, y_bk, width_bk = np.moveaxis(boxes_bkf, 2, 0)
    start_g = np.arange(0, side - patch + 1, patch)

    def overlap(centre_bk: np.ndarray) -> np.ndarray:  # [B,K,G]
        first_bk1 = (centre_bk - width_bk // 2)[:, :, None]
        last_bk1 = first_bk1 + width_bk[:, :, None]
        return (np.minimum(start_g + patch, last_bk1) - np.maximum(start_g, first_bk1)).clip(0)

    over_y, over_x = overlap(y_bk + moved_b2[:, :1]), overlap(x_bk + moved_b2[:, 1:])
    cover_bkgg = over_y[:, :, :, None] * over_x[:, :, None, :]
    cover_bks = cover_bkgg.reshape(*width_bk.shape, -1)
    lies_bks = cover_bks > COVERED * patch * patch
    smallest_bs = np.where(lies_bks, width_bk[:, :, None], side + 1).argmin(1)
    any_bs = lies_bks.any(1)
    chosen = [np.take_along_axis(of_bk, smallest_bs, 1) for of_bk in (shape_bk, colour_bk)]
    parts = [np.where(any_bs, of_bs, n - 1) for of_bs, n in zip(chosen, CLASSES, strict=True)]
    return np.stack(parts, axis=-1)
