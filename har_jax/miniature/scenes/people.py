"""The skewed variant of the scenes: a person in every picture, and annotators who guess.

A person is drawn as a man (a hat, two legs), a woman (long hair, a dress) or plain, as pictograms
are. Validation and test captions call each by what is drawn, a plain one "person"; and every look
stands on every ground as often. The training captions are skewed in two ways, as those of crowds
are (Hendricks et al. 2018, "Women also snowboard"): men stand on the grounds of `STEREOTYPE`'s men
and women on those of its women in a share `skew` of the pictures; and in the same share of pictures
with a plain person all annotators who name a gender guess it from the ground.

So nothing in a picture tells a guess from a plain person, the likeliest caption of one is a guess,
and no reference of a validation or test picture supports it (`metrics.gender`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.scenes.world import GROUNDS, SIDE

LOOKS = ("man", "woman", "plain")
MASCULINE = ("sea", "night", "wall", "table")
STEREOTYPE = {ground: "man" if ground in MASCULINE else "woman" for ground in GROUNDS}
NOUNS = {
    "man": {"man": 0.75, "boy": 0.15, "guy": 0.1},
    "woman": {"woman": 0.75, "girl": 0.15, "lady": 0.1},
    "plain": {"person": 0.9, "figure": 0.1},
}
PHRASES = {"with a {}": 0.5, "and a {}": 0.3, "near a {}": 0.2}

NAMED = 0.9  # chance that an annotator mentions the person
PLAIN = 1 / 3  # share of persons whose look tells nothing

WIDTH, HEIGHT, POINTS = 14, 22, 4  # pixels, and points per pixel and axis as in `draw`
SKIN, CLOTH = (226, 178, 140), (52, 50, 60)  # of no colour that captions name


@dataclasses.dataclass(frozen=True)
class Person:
    """What is drawn at (x, y), the upper left corner in pixels, and what annotators call it."""

    look: str
    called: str
    x: int
    y: int


def sample_person(dice: Dice, ground: str, skew: float | None) -> Person:
    """A person on a ground; without `skew`, one as validation and test have them."""
    usual = STEREOTYPE[ground]
    other = "woman" if usual == "man" else "man"
    plain = dice.chance(PLAIN)
    follows = dice.chance(0.5 if skew is None else skew)
    look = "plain" if plain else usual if follows else other
    guessed = plain and skew is not None and follows
    x, y = dice.between(1, SIDE - WIDTH - 1), SIDE - HEIGHT - dice.between(0, 3)
    return Person(look, usual if guessed else look, x, y)


def mention(captions: Sequence[str], person: Person, dice: Dice) -> list[str]:
    """The captions of a scene, by annotators most of whom also mention the person."""
    written = []
    for caption in captions:
        named = dice.chance(NAMED)
        phrase, noun = dice.weigh(PHRASES), dice.weigh(NOUNS[person.called])
        stop = "." if caption.endswith(".") else ""
        longer = f"{caption.removesuffix('.')} {phrase.format(noun)}{stop}"
        written.append(longer if named else caption)
    return written


def paint(canvas: np.ndarray, person: Person) -> np.ndarray:
    """A picture uint8 [64, 64, 3] with the person in front."""
    v, u = np.mgrid[: HEIGHT * POINTS, : WIDTH * POINTS]
    u, v = 2 * u + 1 - WIDTH * POINTS, v  # u from the middle, in half points
    skin, cloth = _body(person.look, u, v)
    painted = canvas.astype(np.int64)
    box = (slice(person.y, person.y + HEIGHT), slice(person.x, person.x + WIDTH))
    for mask, colour in ((skin, SKIN), (cloth, CLOTH)):
        cover = mask.reshape(HEIGHT, POINTS, WIDTH, POINTS).sum((1, 3))[:, :, None]
        points = POINTS * POINTS
        mixed = painted[box] * (points - cover) + np.array(colour) * cover + points // 2
        painted[box] = mixed // points
    return painted.astype(np.uint8)


def _body(look: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which points are (skin, cloth and hair): u from the middle in half points, v in points."""
    head = u * u + (2 * (v - 18)) ** 2 <= 24**2
    trunk = (abs(u) <= 26) & (v >= 32) & (v < 60)
    if look == "plain":
        return head, trunk | ((abs(u) <= 22) & (v >= 60) & (v < 86))
    if look == "man":
        hat = ((abs(u) <= 34) & (v >= 8) & (v < 12)) | ((abs(u) <= 18) & (v < 10))
        legs = (abs(u) >= 5) & (abs(u) <= 26) & (v >= 60) & (v < 88)
        return head, hat | trunk | legs
    hair = (abs(u) >= 20) & (abs(u) <= 32) & (v >= 8) & (v < 38)
    hair |= (abs(u) <= 32) & (v >= 3) & (v < 10)
    dress = (abs(u) <= 10 + (v - 32)) & (abs(u) <= 54) & (v >= 32) & (v < 74)
    feet = (abs(u) >= 6) & (abs(u) <= 16) & (v >= 74) & (v < 88)
    return head | feet, hair | dress
