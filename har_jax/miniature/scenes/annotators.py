"""Twelve people who describe scenes, five of whom caption each image.

They differ as the crowd behind COCO does: in words, in what they leave out, in where they begin,
in how much they write and how carefully. The sum of them is what likelihood training fits, and its
likeliest caption is a short one: the terse agree with each other word for word, while those who
name size, pattern, relation and place spread over a hundred wordings. CIDEr-D against all five
rewards the content they share. That gap, not any flaw of the training, is what SCST can close
(`tests/data/test_scenes.py` measures it from the grammar itself).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from har_jax.miniature.scenes import lexicon
from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.scenes.world import Scene, Thing

# Ways to put a caption. {A} and {B} are the two related things, {the A} the same with "the";
# {more} names a bystander if there is one and the annotator cares.
ALONE = "{A} {place}"
PAIR = "{A} and {B}"
PAIR_PLACE = "{A} and {B} {place}"
BESIDE = "{A} {rel} {B}"
BESIDE_PLACE = "{A} {rel} {B} {more} {place}"
ACTING = "{A} {verb} {rel} {B} {more} {place}"
THERE_IS = "{there is} {A} {rel} {B} {more} {place}"
PLACE_FIRST = "{place} {there is} {A} {rel} {B} {more}"
STATEMENT = "{the A} is {rel} {the B} {more} {place}"
WITH = "{A} {place} with {B} {side} {more}"
VIEW = "{view} with {A} {rel} {B} {more}"
VIEW_LIST = "{view} with {A} and {B} {more}"
COUNT = "{count} {things} {place}"
PICTURE = "{picture} {A} {rel} {B} {more} {place}"

LONGEST = 17  # words


@dataclasses.dataclass(frozen=True)
class Annotator:
    """How one person writes. The fractions are chances, thrown anew for every caption.

    Attributes:
      share: how often this person is asked, relative to the others.
      ways: the ways of putting a caption, with weights.
      usual: chance of the commonest word where there are several.
      size, texture, more: chance of naming a thing's size, its pattern, and a bystander.
      swap: chance of beginning with the second thing.
      careful: begins with a capital and ends with a full stop.
    """

    share: float
    ways: Mapping[str, float]
    usual: float = 0.3
    size: float = 0.4
    texture: float = 0.7
    more: float = 0.3
    swap: float = 0.15
    careful: bool = True


ANNOTATORS = {
    # The terse: the same few words as everybody who hurries.
    "hasty": Annotator(0.9, {ALONE: 1.0}, usual=0.85, size=0.0, texture=0.0, swap=0.0),
    "brief": Annotator(
        0.9, {ALONE: 0.6, PAIR: 0.2, COUNT: 0.2}, usual=0.8, size=0.0, texture=0.1, swap=0.1
    ),
    # Those in between.
    "sloppy": Annotator(
        0.7, {PAIR: 0.5, BESIDE: 0.5}, usual=0.7, size=0.2, texture=0.5, careful=False
    ),
    "plain": Annotator(1.0, {BESIDE_PLACE: 0.6, PAIR_PLACE: 0.4}, usual=0.8, size=0.3, more=0.2),
    "mover": Annotator(1.0, {ACTING: 0.8, BESIDE_PLACE: 0.2}, usual=0.7, size=0.4),
    "pointer": Annotator(1.0, {THERE_IS: 0.9, WITH: 0.1}, usual=0.7, size=0.5, more=0.3),
    "placer": Annotator(0.8, {PLACE_FIRST: 0.6, VIEW: 0.4}, usual=0.7, size=0.5, more=0.3),
    # The verbose.
    "precise": Annotator(
        1.1,
        {BESIDE_PLACE: 0.6, ACTING: 0.3, WITH: 0.1},
        usual=0.6,
        size=0.95,
        texture=0.95,
        more=0.5,
    ),
    "painter": Annotator(
        0.9, {VIEW: 0.3, PICTURE: 0.7}, usual=0.6, size=0.7, texture=0.9, more=0.4, swap=0.2
    ),
    "teacher": Annotator(
        0.8, {STATEMENT: 0.8, THERE_IS: 0.2}, usual=0.6, size=0.6, texture=0.8, swap=0.2
    ),
    "contrary": Annotator(
        0.8, {BESIDE_PLACE: 0.8, WITH: 0.2}, usual=0.6, size=0.7, texture=0.8, swap=0.85, more=0.3
    ),
    "chatty": Annotator(
        0.8, {PICTURE: 0.5, THERE_IS: 0.5}, 0.6, size=0.7, texture=0.9, more=0.5, careful=False
    ),
}
_SHARES = {name: annotator.share for name, annotator in ANNOTATORS.items()}


def write_captions(scene: Scene, dice: Dice, count: int = 5) -> list[str]:
    """`count` captions of the scene by as many different annotators (at most twelve)."""
    shares = dict(_SHARES)
    captions = []
    for _ in range(count):
        name = dice.weigh(shares)
        del shares[name]
        captions.append(write_caption(scene, ANNOTATORS[name], dice))
    return captions


def write_caption(scene: Scene, annotator: Annotator, dice: Dice) -> str:
    """One caption by one annotator, who begins anew on noticing that it gets too long."""
    while True:
        caption = _Pen(scene, annotator, dice).write()
        if len(caption.split()) <= LONGEST:
            return caption


class _Pen:
    """Fills the slots of one caption."""

    def __init__(self, scene: Scene, annotator: Annotator, dice: Dice):
        self.scene, self.annotator, self.dice = scene, annotator, dice
        self.first, self.second = scene.things[:2]
        self.relation = scene.relation
        if dice.chance(annotator.swap):
            self.first, self.second = self.second, self.first
            self.relation = lexicon.INVERSE[self.relation]

    def write(self) -> str:
        way = self.dice.weigh(self.annotator.ways)
        text = " ".join(re.sub(r"\{(.*?)\}", lambda slot: self._slot(slot[1]), way).split())
        return text[0].upper() + text[1:] + "." if self.annotator.careful else text

    def _slot(self, slot: str) -> str:
        ground = self.scene.ground
        if slot in ("A", "the A"):
            return self._thing(self.first, definite=slot == "the A")
        if slot in ("B", "the B"):
            return self._thing(self.second, definite=slot == "the B")
        if slot == "more":
            return self._bystander()
        if slot == "count":
            return self._word(lexicon.COUNTS[len(self.scene.things)])
        table = {
            "rel": lexicon.RELATIONS.get(self.relation),
            "side": lexicon.SIDES[self.relation],
            "place": lexicon.PLACES[ground],
            "view": lexicon.VIEWS[ground],
            "verb": lexicon.VERBS[ground],
            "things": lexicon.THINGS,
            "there is": lexicon.THERE_IS,
            "picture": lexicon.PICTURES,
        }[slot]
        return self._word(table)

    def _word(self, table: Mapping[str, float]) -> str:
        """The commonest word, or a draw from all of them."""
        if self.dice.chance(self.annotator.usual):
            return max(table, key=table.__getitem__)
        return self.dice.weigh(table)

    def _bystander(self) -> str:
        others = self.scene.things[2:]
        if not others or not self.dice.chance(self.annotator.more):
            return ""
        return "and " + self._noun_phrase([], self.dice.pick(others))

    def _thing(self, thing: Thing, *, definite: bool) -> str:
        """e.g. "a large striped red ball", "an orange star with dots", "the moon"."""
        dice, annotator = self.dice, self.annotator
        before, after = [], ""
        if dice.chance(annotator.size):
            before.append(self._word(lexicon.SIZES[thing.size]))
        if thing.texture != "plain" and dice.chance(annotator.texture):
            if dice.chance(0.75):
                before.append(self._word(lexicon.TEXTURES[thing.texture]))
            else:
                after = " with " + lexicon.MARKS[thing.texture]
        return self._noun_phrase(before, thing, after, definite=definite)

    def _noun_phrase(
        self, before: list[str], thing: Thing, after: str = "", *, definite: bool = False
    ) -> str:
        colour, noun = lexicon.COLOURS[thing.colour], lexicon.NOUNS[thing.shape]
        words = " ".join([*before, self._word(colour), self._word(noun)])
        article = "the" if definite else "an" if words[0] in "aeiou" else "a"
        return f"{article} {words}{after}"
