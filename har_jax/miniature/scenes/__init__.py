"""Scenes, the embedded dataset: images that are drawn, captions that twelve annotators write.

It needs no download and takes half a minute; a seed gives the same images and captions anywhere.
`world` says what a scene is, `draw` paints it, `annotators` describe it in the words of `lexicon`;
`people` are in a variant with skewed captions only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from har_jax.data.dataset import Example
from har_jax.errors import UserError
from har_jax.miniature.scenes import annotators, draw, people, world
from har_jax.miniature.scenes.dice import Dice

SIZES = {"train": 4000, "val": 500, "test": 500}
_FIRST_ID = {"train": 100_001, "val": 200_001, "test": 300_001}


def generate(
    seed: int = 0, sizes: Mapping[str, int] | None = None, *, skew: float | None = None
) -> Iterator[tuple[str, Example]]:
    """Yields (split, example), split by split; PNG images of 64 x 64, five captions each.

    No two images mean the same (`world.Scene.meaning`) or look the same, within or across splits.
    Test images hold a colour and shape pair of `world.HELD_OUT`, the others never do.

    Args:
      sizes: images of "train", "val" and "test", 4,000, 500 and 500 by default.
      skew: draw a person into each scene, and let the captions of the training split follow a
        stereotype in this share of the pictures (`people`); None: no persons.

    Raises:
      UserError: a split of no images, of too many, or of an unknown name; a skew that is no share.
    """
    if skew is not None and not 0.5 <= skew <= 1:
        raise UserError(f"skew is {skew}; give a share from 0.5 (none) to 1, such as 0.8")
    world_name = "scenes" if skew is None else "skewed scenes"
    sizes = {**SIZES, **(sizes or {})}
    for split, size in sizes.items():
        if split not in SIZES:
            raise UserError(f"scenes have no split {split!r}; the splits are {', '.join(SIZES)}")
        if not 1 <= size < 100_000:
            raise UserError(f"split {split!r} of {size} scenes; give 1 to 99,999")
    seen: set[object] = set()
    for split, size in sizes.items():
        made = attempt = 0
        while made < size:
            dice = Dice(world_name, seed, split, attempt)
            attempt += 1
            scene = world.sample_scene(dice, held_out=split == "test")
            if scene.meaning in seen:
                continue
            person = None
            if skew is not None:
                own = skew if split == "train" else None
                person = people.sample_person(dice, scene.ground, own)
            image = draw.png(scene, dice, person)
            digest = hashlib.sha256(image).digest()
            if digest in seen:
                continue
            seen.update((scene.meaning, digest))
            image_id = _FIRST_ID[split] + made
            made += 1
            captions = annotators.write_captions(scene, dice)
            if person is not None:
                captions = people.mention(captions, person, dice)
            yield split, Example(image_id, f"{image_id:06d}.png", image, captions)
