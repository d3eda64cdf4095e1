"""Scenes, the embedded dataset: images that are drawn, captions that twelve annotators write.

It needs no download and takes seconds; a seed gives the same images and captions anywhere.
`world` says what a scene is, `draw` paints it, `annotators` describe it in the words of `lexicon`;
`people` are in a variant with skewed captions only. `Settings` say which dataset it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from har_jax.data.dataset import Example
from har_jax.errors import UserError
from har_jax.foreign import typed
from har_jax.miniature.scenes import annotators, draw, people, world
from har_jax.miniature.scenes.dice import Dice
from har_jax.types import UInt

SIZES = {"train": 4000, "val": 500, "test": 500}
_FIRST_ID = {"train": 100_001, "val": 200_001, "test": 300_001}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a dataset of scenes depends on.

    Attributes:
      sizes: images of "train", "val" and "test", 4,000, 500 and 500 by default.
      skew: draw a person into each scene, and let the captions of the training split follow a
        stereotype in this share of the pictures (`people`); None: no persons.

    Raises:
      UserError: a split of no images, of too many, or of an unknown name; a skew that is no share.
    """

    seed: int = 0
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skew: float | None = None

    def __post_init__(self) -> None:
        if self.skew is not None and not 0.5 <= self.skew <= 1:
            raise UserError(f"skew is {self.skew}; give a share from 0.5 (none) to 1, such as 0.8")
        object.__setattr__(self, "sizes", {**SIZES, **self.sizes})
        for split, size in self.sizes.items():
            if split not in SIZES:
                known = ", ".join(SIZES)
                raise UserError(f"scenes have no split {split!r}; the splits are {known}")
            if not 1 <= size < 100_000:
                raise UserError(f"split {split!r} of {size} scenes; give 1 to 99,999")

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Settings | None:
        """Those that a prepared dataset's card records; None for a dataset of other images.

        Raises:
          UserError: it records something else than `prepare scenes` writes.
        """
        settings = card.get("settings", {})
        if card.get("name") != "scenes" or not {"seed", "sizes"} <= settings.keys():
            return None
        return typed(settings, cls, "dataset.json: settings", "prepare the dataset again")

    @property
    def world(self) -> str:
        return "scenes" if self.skew is None else "skewed scenes"


def generate(
    seed: int = 0, sizes: Mapping[str, int] | None = None, *, skew: float | None = None
) -> Iterator[tuple[str, Example]]:
    """Yields (split, example), split by split; PNG images of 64 x 64, five captions each.

    No two images mean the same (`world.Scene.meaning`), within or across splits. Test images hold
    a colour and shape pair of `world.HELD_OUT`, the others never do.

    Raises:
      UserError: see `Settings`, whose fields these are.
    """
    settings = Settings(seed, sizes or {}, skew)
    for split, image_id, scene, dice in sampled(settings):
        picture, captions = _shown(scene, dice, settings.skew, split == "train")
        yield split, Example(image_id, f"{image_id:06d}.png", draw.png(picture), captions)


def sampled(settings: Settings) -> Iterator[tuple[str, int, world.Scene, Dice]]:
    """Yields (split, image id, scene, dice) of each image of a dataset, undrawn.

    The dice stand where the drawing begins.
    """
    seen: set[object] = set()
    for split, size in settings.sizes.items():
        made = attempt = 0
        while made < size:
            dice = Dice(settings.world, settings.seed, split, attempt)
            attempt += 1
            scene = world.sample_scene(dice, held_out=split == "test")
            if scene.meaning in seen:
                continue
            seen.add(scene.meaning)
            yield split, _FIRST_ID[split] + made, scene, dice
            made += 1


def more(
    settings: Settings, count: int
) -> Iterator[tuple[world.Scene, UInt[np.ndarray, "H W 3"], list[str]]]:
    """Yields `count` scenes, their pictures, and five captions each as the training split has them.

    None means what a scene of the dataset means, in whichever split, nor what another of these
    means; so none holds a held-out pair, or tells of a validation image.
    """
    seen = {scene.meaning for _, _, scene, _ in sampled(settings)}
    made = attempt = 0
    while made < count:
        dice = Dice(settings.world, settings.seed, "more", attempt)
        attempt += 1
        scene = world.sample_scene(dice, held_out=False)
        if scene.meaning not in seen:
            seen.add(scene.meaning)
            made += 1
            yield scene, *_shown(scene, dice, settings.skew, True)


def _shown(
    scene: world.Scene, dice: Dice, skew: float | None, training: bool
) -> tuple[UInt[np.ndarray, "H W 3"], list[str]]:
    """The picture of a scene and its captions; with a skew, of a person too."""
    person = None
    if skew is not None:
        person = people.sample_person(dice, scene.ground, skew if training else None)
    picture = draw.render(scene, dice)
    captions = annotators.write_captions(scene, dice)
    if person is None:
        return picture, captions
    return people.paint(picture, person), people.mention(captions, person, dice)
