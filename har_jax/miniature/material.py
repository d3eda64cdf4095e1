"""What the miniature CLIPs see: the pictures of a dataset, and of scenes more that are drawn.

Drawing one costs a millisecond, and 4,000 are soon known by heart, so they see others too; none of
a held-out pair, and none that means what a scene of the dataset means (`scenes.more`), so
validation and test pictures are as new to them as before.
"""

from __future__ import annotations

import functools

import numpy as np

from har_jax.data.dataset import Split
from har_jax.data.images import Preprocessor
from har_jax.miniature import scenes
from har_jax.miniature.patches import Pictures, boxes
from har_jax.miniature.recipes import IMAGE_SIZE, Recipe
from har_jax.progress import track


class Material:
    """Read and drawn once, when a CLIP first asks: the two share the preprocessing.

    Attributes:
      settings: of a dataset of scenes, None of another.
    """

    def __init__(
        self, train: Split, held_out: Split, settings: scenes.Settings | None, recipe: Recipe
    ):
        self._train, self._held_out, self.settings = train, held_out, settings
        self._recipe = recipe
        self.preprocessor = Preprocessor.for_size(IMAGE_SIZE)

    @functools.cached_property
    def train(self) -> Pictures:
        """The training images of the dataset, `max_images` at most, and the scenes drawn more."""
        count = min(len(self._train), self._recipe.max_images)
        n_more = 0 if self.settings is None else self._recipe.scenes
        pictures = self._read(self._train, count, n_more, "reading images")
        if self.settings is None:
            return pictures
        captions = list(pictures.captions)
        known = {i: scene for _, i, scene, _ in scenes.sampled(self.settings)}
        shown = [known[i] for i in self._train.ids[:count]]
        drawn = scenes.more(self.settings, n_more)
        bar = track(drawn, total=n_more, desc="drawing more scenes", unit="image")
        for i, (scene, picture, texts) in enumerate(bar, count):
            pictures.pixels[i] = picture
            captions.append(texts)
            shown.append(scene)
        return Pictures(pictures.pixels, captions, boxes(shown))

    @functools.cached_property
    def held_out(self) -> Pictures:
        """256 images of validation, for the figures."""
        count = min(len(self._held_out), 256)
        return self._read(self._held_out, count, 0, "reading images, held out")

    def _read(self, split: Split, count: int, room: int, label: str) -> Pictures:
        """The first `count` images of a split, before `room` for more pictures."""
        pixels = np.empty((count + room, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for i in track(range(count), desc=label, unit="image"):
            pixels[i] = self.preprocessor.pixels(split[i].image)
        return Pictures(pixels, split.captions[:count])
