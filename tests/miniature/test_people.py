"""The skewed scenes: what the pictures show, what the captions of each split say of it."""

import collections

import numpy as np
import pytest

from har_jax.errors import UserError
from har_jax.metrics import gender
from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.miniature import scenes
from har_jax.miniature.scenes import annotators, people, world
from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.scenes.world import GROUNDS, SIDE
from har_jax.text import ptb

SKEW = 0.8
SIZES = {"train": 40, "val": 8, "test": 8}


@pytest.fixture(scope="module")
def skewed():
    return list(scenes.generate(3, SIZES, skew=SKEW))


def persons(skew, count=6000):
    for i in range(count):
        dice = Dice("persons", i)
        ground = dice.pick(GROUNDS)
        yield ground, people.sample_person(dice, ground, skew)


def test_a_seed_gives_the_same_dataset_and_another_world_than_the_scenes(skewed):
    assert list(scenes.generate(3, SIZES, skew=SKEW)) == skewed
    plain = list(scenes.generate(3, SIZES))
    assert not {e.image for _, e in plain} & {e.image for _, e in skewed}
    assert not any(
        any(gender.mentions(ptb.words(c))) or "person" in c for _, e in plain for c in e.captions
    )


def test_balanced_captions_say_what_is_drawn_on_every_ground_as_often():
    looks = collections.defaultdict(collections.Counter)
    for ground, person in persons(None):
        assert person.called == person.look
        looks[ground][person.look] += 1
    for counts in looks.values():
        shares = [counts[look] / counts.total() for look in people.LOOKS]
        np.testing.assert_allclose(shares, 1 / 3, atol=0.07)


def test_training_captions_follow_the_stereotype_in_the_given_share():
    seen, guessed = [], []
    for ground, person in persons(SKEW):
        usual = people.STEREOTYPE[ground]
        if person.look == "plain":
            assert person.called in ("plain", usual)
            guessed.append(person.called == usual)
        else:
            assert person.called == person.look  # what can be seen is never denied
            seen.append(person.look == usual)
    assert np.mean(seen) == pytest.approx(SKEW, abs=0.03)
    assert np.mean(guessed) == pytest.approx(SKEW, abs=0.03)


def test_a_guess_is_unsupported_where_annotators_do_not_guess():
    """The best guess at a training picture's references has b > 0 in a share of the plain ones;
    on balanced captions, in all of them."""

    def unsupported(skew):
        rates = []
        for i, (ground, person) in enumerate(persons(skew, 1500)):
            if person.look != "plain":
                continue
            captions = people.mention(["A red ball."] * 5, person, Dice("captions", i))
            support = gender.support([ptb.words(text) for text in captions])
            guess = people.STEREOTYPE[ground]
            rates.append(gender.unsupported((guess == "man", guess == "woman"), support) > 0)
        return np.mean(rates)

    assert unsupported(SKEW) == pytest.approx(1 - SKEW, abs=0.05)
    assert unsupported(None) == 1


def test_cider_rewards_a_guess_and_the_penalty_turns_that_round():
    """From the grammar itself, over training pictures with a plain person: what `cider_d - 5*bias`
    can teach, and that CIDEr-D alone teaches the guess."""
    references, guesses = [], []
    for i in range(500):
        dice = Dice("worth", i)
        scene = world.sample_scene(dice, held_out=False)
        person = people.sample_person(dice, scene.ground, SKEW)
        captions = people.mention(annotators.write_captions(scene, dice), person, dice)
        references.append([ptb.words(text) for text in captions])
        if person.look == "plain":
            text = annotators.write_captions(scene, dice, 1)[0].removesuffix(".")
            guesses.append((i, text, people.STEREOTYPE[scene.ground]))
    df = DocumentFrequency.from_references(references)
    scorer = CiderD(df, dict(enumerate(references)), eos=True)
    ids = [i for i, _, _ in guesses]
    captions = [
        [ptb.words(f"{text} with a {noun}") for noun in (guess, "person")]
        for _, text, guess in guesses
    ]
    guessed, neutral = scorer.score(ids, captions).mean(axis=0)
    penalty = np.mean(
        [
            gender.unsupported(gender.mentions(pair[0]), gender.support(references[i]))
            for i, pair in zip(ids, captions, strict=True)
        ]
    )
    assert guessed > neutral + 0.05 and neutral > guessed - 5 * penalty + 0.05


def test_captions_stay_sentences_and_most_mention_the_person(skewed):
    nouns = {noun for table in people.NOUNS.values() for noun in table}
    named = []
    for _, example in skewed:
        assert len(example.captions) == 5
        for caption in example.captions:
            assert caption[0].isupper() == caption.endswith(".") and ".." not in caption
            named.append(not nouns.isdisjoint(ptb.words(caption)))
    assert np.mean(named) == pytest.approx(people.NAMED, abs=0.07)


def test_persons_are_told_apart_by_their_pixels():
    canvas = np.full((SIDE, SIDE, 3), 128, np.uint8)
    drawn = {look: people.paint(canvas, people.Person(look, look, 20, 40)) for look in people.LOOKS}
    for look, picture in drawn.items():
        changed = (picture != canvas).any(axis=2)
        rows, columns = np.where(changed)
        assert rows.min() >= 40 and columns.min() >= 20
        assert rows.max() < 40 + people.HEIGHT and columns.max() < 20 + people.WIDTH
        others = [other for name, other in drawn.items() if name != look]
        assert all((picture != other).any(axis=2).sum() > 15 for other in others)


@pytest.mark.parametrize("skew", [0.4, 1.1])
def test_a_skew_that_is_no_share_is_refused(skew):
    with pytest.raises(UserError, match="give a share from 0"):
        next(scenes.generate(0, skew=skew))
