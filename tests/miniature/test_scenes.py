"""Scenes: the same everywhere, unlike each other, and with something for CIDEr-D to find."""

import collections
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from har_jax.errors import UserError
from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.miniature import scenes
from har_jax.miniature.scenes import annotators, draw, lexicon, world
from har_jax.miniature.scenes.dice import Dice
from har_jax.text import ptb

GOLDEN = "26bd0d72fe864d33"


def pixels(example):
    return np.asarray(Image.open(io.BytesIO(example.image)))


def scenes_of(split, count):
    return [
        world.sample_scene(Dice("scenes", 0, split, i), held_out=split == "test")
        for i in range(count)
    ]


def test_a_seed_gives_the_same_dataset(small_scenes):
    again = list(scenes.generate(3, {"train": 30, "val": 7, "test": 8}))
    assert again == small_scenes
    other = [example for _, example in scenes.generate(4, {"train": 5, "val": 1, "test": 1})]
    assert all(a.image != b.image for a, (_, b) in zip(other, small_scenes, strict=False))


def test_a_longer_split_begins_with_the_shorter(small_scenes):
    longer = [e for s, e in scenes.generate(3, {"train": 33, "val": 1, "test": 1}) if s == "train"]
    assert longer[:30] == [example for split, example in small_scenes if split == "train"]


def test_pixels_and_captions_are_those_of_any_machine():
    """A change of these hashes changes the dataset for everyone, and every figure got from it."""
    digest = hashlib.sha256()
    for i in range(60):
        dice = Dice("scenes", 0, "train", i)
        scene = world.sample_scene(dice, held_out=False)
        digest.update(draw.render(scene, dice).tobytes())
        digest.update("\n".join(annotators.write_captions(scene, dice)).encode())
    assert digest.hexdigest()[:16] == GOLDEN


def test_images_are_small_rgb_pngs_and_no_two_alike(small_scenes):
    seen = set()
    for _, example in small_scenes:
        image = Image.open(io.BytesIO(example.image))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        seen.add(pixels(example).tobytes())
    assert len(seen) == len(small_scenes)
    ids = [example.image_id for _, example in small_scenes]
    assert len(set(ids)) == len(ids)


def test_test_images_hold_pairs_that_training_never_shows():
    assert len(world.HELD_OUT) == 8
    assert {colour for colour, _ in world.HELD_OUT} == set(world.COLOURS)
    assert {shape for _, shape in world.HELD_OUT} == set(world.SHAPES)
    shown = {"train": set(), "val": set(), "test": set()}
    for split, pairs in shown.items():
        for scene in scenes_of(split, 600):
            held_out = [thing.pair in world.HELD_OUT for thing in scene.things]
            assert sum(held_out[:2]) == (split == "test")
            assert not any(held_out[2:])
            pairs.update(thing.pair for thing in scene.things)
    assert not shown["train"] & world.HELD_OUT and not shown["val"] & world.HELD_OUT
    assert shown["test"] >= world.HELD_OUT
    assert shown["train"] == {
        (c, s) for c in world.COLOURS for s in world.SHAPES if (c, s) not in world.HELD_OUT
    }


def test_no_meaning_is_in_two_splits(monkeypatch):
    meanings = collections.Counter()
    sample = world.sample_scene

    def recording(dice, *, held_out):
        scene = sample(dice, held_out=held_out)
        # Few enough meanings that the dice repeat them: the generator has to notice.
        cut = tuple(t for t in scene.things[:2])
        scene = world.Scene(scene.ground, "left", cut)
        meanings[scene.meaning] += 1
        return scene

    monkeypatch.setattr(world, "sample_scene", recording)
    monkeypatch.setattr(world.Scene, "meaning", property(lambda self: self.things[0].pair))
    made = list(scenes.generate(0, {"train": 20, "val": 10, "test": 3}))
    assert len(made) == 33
    assert sum(meanings.values()) > 33


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_things_stand_as_the_relation_says(relation):
    for i in range(300):
        layout = world._pair_layout(Dice("layout", i), relation)
        (x, y, w), (a, b, v) = layout
        assert all(q - r // 2 >= 0 and q + r // 2 <= 64 for *p, r in layout for q in p)
        apart = (w + v) // 2
        assert {
            "left": a - x >= apart,
            "right": x - a >= apart,
            "above": b - y >= apart,
            "below": y - b >= apart,
            "on": x == a and 0 <= b - y <= apart and b - y >= apart - 2,
            "inside": (x, y) == (a, b) and w < 0.5 * v,
        }[relation], layout


@pytest.mark.parametrize("shape", world.SHAPES)
def test_a_thing_shows_its_colour_and_covers_its_share(shape):
    thing = world.Thing(shape, "red", "plain", "large", 32, 32, 28)
    scene = world.Scene(
        "wall", "left", (thing, world.Thing("star", "blue", "plain", "s", 6, 6, 10))
    )
    image = draw.render(scene, Dice(1)).astype(int)
    red = (image[..., 0] > 150) & (image[..., 1] < 90)
    box = red[18:46, 18:46]
    assert 0.2 < box.mean() < 0.9
    assert red.sum() == box.sum()


def test_captions_are_sentences_of_five_different_people():
    words = collections.Counter()
    lengths = []
    for i, scene in enumerate(scenes_of("train", 400)):
        captions = annotators.write_captions(scene, Dice("people", i))
        assert len(captions) == 5
        for caption in captions:
            assert re.fullmatch(r"[A-Za-z ]+\.?", caption) and "  " not in caption
            assert caption[0].isupper() == caption.endswith("."), caption
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption), caption
            last = ptb.words(caption)[-1]
            assert last not in {"a", "an", "the", "with", "of", "and", "is", "in", "on"}, caption
            lengths.append(len(ptb.words(caption)))
            words.update(ptb.words(caption))
    assert 140 <= len(words) <= 300
    assert min(lengths) >= 5 and max(lengths) <= annotators.LONGEST
    assert 10 < np.mean(lengths) < 15


def test_every_table_of_words_covers_the_world():
    assert set(lexicon.NOUNS) == set(world.SHAPES)
    assert set(lexicon.COLOURS) == set(world.COLOURS)
    for table in (lexicon.PLACES, lexicon.VIEWS, lexicon.VERBS):
        assert set(table) == set(world.GROUNDS)
    every = set(world.RELATIONS) | set(lexicon.INVERSE.values())
    assert set(lexicon.RELATIONS) == set(lexicon.SIDES) == every


@pytest.fixture(scope="module")
def frequencies():
    references = [
        [ptb.words(c) for c in annotators.write_captions(scene, Dice("df", i))]
        for i, scene in enumerate(scenes_of("train", 600))
    ]
    return DocumentFrequency.from_references(references), references


def test_captions_of_another_image_score_low(frequencies):
    df, references = frequencies
    scorer = CiderD(df, {i: rows[1:] for i, rows in enumerate(references)}, eos=False)
    own = scorer.score(range(len(references)), [[rows[0]] for rows in references]).mean()
    shifted = references[1:] + references[:1]
    other = scorer.score(range(len(references)), [[rows[0]] for rows in shifted]).mean()
    assert other < 0.3 * own, (other, own)


def test_consensus_beats_the_likeliest_caption_and_tricks_do_not_pay(frequencies):
    """The head-room of SCST, from the grammar itself: no model, so no training is to blame.

    The likeliest caption is what greedy decoding of a perfect likelihood model writes: at each word
    the commonest continuation. Its expected CIDEr-D lies well below that of the best caption that
    any annotator would write. And no mutilation of that best caption scores higher.
    """
    df, _ = frequencies
    greedy_scores, best_scores, sampled_scores = [], [], []
    for i, scene in enumerate(scenes_of("val", 14)):
        dice = Dice("consensus", i)
        texts = [t for _ in range(160) for t in annotators.write_captions(scene, dice)]
        greedy = ptb.words(likeliest(texts))
        candidates = list(dict.fromkeys(tuple(ptb.words(t)) for t in texts))
        scorer = CiderD(df, {0: [ptb.words(t) for t in texts[:400]]}, eos=True)
        scores = scorer.score([0], [[greedy, *candidates]])[0]
        best = candidates[int(scores[1:].argmax())]
        greedy_scores.append(scores[0])
        best_scores.append(scores[1:].max())
        sampled_scores.append(scorer.score([0], [[ptb.words(t) for t in texts[:100]]]).mean())
        function_words = {"a", "an", "the", "in", "on", "of", "is", "there", "and", "to"}
        tricks = [
            best[:-1],
            best[:-2],
            (*best, "with", "a"),
            (*best, "and", "a"),
            (*best, best[-1]),
            best + best[-3:],
            tuple(word for word in best if word not in function_words),
        ]
        assert scorer.score([0], [tricks]).max() < scores[1:].max()
    assert np.mean(best_scores) > 1.3 * np.mean(greedy_scores)
    assert np.mean(greedy_scores) > np.mean(sampled_scores)


def likeliest(texts):
    """Greedy walk down the tree of all captions, word by word."""
    left = [[*re.findall(r"[A-Za-z]+|\.", text), None] for text in texts]
    written = []
    while True:
        word = collections.Counter(t[len(written)] for t in left).most_common(1)[0][0]
        if word is None:
            return " ".join(written)
        left = [t for t in left if t[len(written)] == word]
        written.append(word)


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="0 scenes"):
        next(scenes.generate(0, {"train": 0}))
    with pytest.raises(UserError, match="no split 'tset'"):
        next(scenes.generate(0, {"tset": 3}))
