"""What a scene holds: two to four things on a ground, the first two of them in a relation.

The first thing is the one that most people would name first: the larger of two that stand beside
or above one another, the small one when it is on or inside the other.

The test split is made of colour and shape pairs that training never shows (`HELD_OUT`): every test
image has one in its first two things, so a captioner must compose "purple" and "star" that it only
met apart. Validation looks like training.
"""

from __future__ import annotations

import dataclasses

from har_jax.miniature.scenes.dice import Dice

SIDE = 64  # pixels; four patches of 16 a side
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross", "crescent")
TEXTURES = {"plain": 6.0, "striped": 2.0, "dotted": 1.0, "checkered": 1.0}
GROUNDS = ("grass", "sea", "night", "sand", "snow", "wall", "table")
RELATIONS = {"left": 3.0, "right": 3.0, "above": 2.5, "below": 2.5, "on": 2.0, "inside": 2.0}

# Every colour and every shape is held out in one pair and shown in the other seven.
HELD_OUT = frozenset((COLOURS[i], SHAPES[(3 * i + 1) % len(SHAPES)]) for i in range(len(COLOURS)))

# Colours that would not stand out on a ground.
CAMOUFLAGE = {"grass": "green", "sea": "blue", "sand": "yellow", "snow": "white", "table": "orange"}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: what it is and where it stands (centre and width in pixels)."""

    shape: str
    colour: str
    texture: str
    size: str  # "large" or "small"
    x: int
    y: int
    width: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """`things[0]` stands in `relation` to `things[1]`; the others are bystanders."""

    ground: str
    relation: str
    things: tuple[Thing, ...]

    @property
    def meaning(self) -> tuple:
        """All that a caption could tell; no two scenes of a dataset share it."""
        told = tuple((t.shape, t.colour, t.texture, t.size) for t in self.things)
        return self.ground, self.relation, told


def sample_scene(dice: Dice, *, held_out: bool) -> Scene:
    """A scene whose first two things hold exactly one held-out pair (`held_out`), or none at all.

    Bystanders are never of a held-out pair, so test images differ from training in one thing only.
    """
    ground = dice.pick(GROUNDS)
    relation = dice.weigh(RELATIONS)
    colours = [c for c in COLOURS if c != CAMOUFLAGE.get(ground)]
    known = [(c, s) for c in colours for s in SHAPES if (c, s) not in HELD_OUT]
    novel = [(c, s) for c in colours for s in SHAPES if (c, s) in HELD_OUT]
    novel_at = dice.between(0, 1) if held_out else None
    count = dice.weigh({2: 5.0, 3: 3.5, 4: 1.5})
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        at = len(pairs)
        options = novel if at == novel_at else known
        if relation == "inside" and at == 1:  # something must go around the first thing
            options = [p for p in options if p[1] in ("ring", "square")]
        # No two things of a scene share a colour or a shape: any caption tells them apart.
        options = [p for p in options if all(p[0] != q[0] and p[1] != q[1] for q in pairs)]
        if not options:  # a held-out pair that fits may not exist: throw the dice again
            return sample_scene(dice, held_out=held_out)
        pairs.append(dice.pick(options))
    layout = _pair_layout(dice, relation)
    for _ in range(count - 2):
        layout.append(_bystander(dice, layout))
    things = []
    for (colour, shape), (x, y, width) in zip(pairs, layout, strict=True):
        texture = dice.weigh(TEXTURES)
        if relation == "inside" and len(things) == 1:
            texture = "plain"  # a pattern would hide what stands before it
        size = "large" if width >= 22 else "small"
        things.append(Thing(shape, colour, texture, size, x, y, width))
    return Scene(ground, relation, tuple(things))


def _pair_layout(dice: Dice, relation: str) -> list[tuple[int, int, int]]:
    """Places of the two related things as (x, y, width), inside the image."""
    if relation == "inside":
        outer, inner = dice.between(33, 36), dice.between(13, 15)
        x, y = _centre(dice, outer), _centre(dice, outer)
        return [(x, y, inner), (x, y, outer)]
    if relation == "on":
        upper, lower = dice.between(15, 18), dice.between(25, 29)
        x = _centre(dice, lower)
        top = dice.between(2, SIDE - 2 - upper - lower)
        return [(x, top + upper // 2, upper), (x, top + upper + lower // 2 - 1, lower)]
    first = dice.between(25, 28)
    second = dice.between(15, 18) if dice.chance(0.6) else dice.between(22, 24)
    before, after = (second, first) if relation in ("right", "below") else (first, second)
    room = SIDE - 2 - before - after
    gap = dice.between(min(5, room), room)
    start = 1 + dice.between(0, room - gap)
    a, b = start + before // 2, start + before + gap + after // 2
    across = _centre(dice, max(before, after))
    drift = across + dice.between(-4, 4)
    along = (b, a) if relation in ("right", "below") else (a, b)
    sideways = (across, min(max(drift, second // 2 + 1), SIDE - second // 2 - 1))
    if relation in ("left", "right"):
        return [(along[0], sideways[0], first), (along[1], sideways[1], second)]
    return [(sideways[0], along[0], first), (sideways[1], along[1], second)]


def _centre(dice: Dice, width: int) -> int:
    return dice.between(width // 2 + 1, SIDE - width // 2 - 1)


def _bystander(dice: Dice, layout: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A small thing where it covers the others least, out of forty tries."""
    width = dice.between(14, 16)

    def cover(place: tuple[int, int, int]) -> int:
        x, y, w = place
        return sum(
            max(0, (w + v) // 2 + 1 - abs(x - a)) * max(0, (w + v) // 2 + 1 - abs(y - b))
            for a, b, v in layout
        )

    tries = [(_centre(dice, width), _centre(dice, width), width) for _ in range(40)]
    return min(tries, key=cover)
