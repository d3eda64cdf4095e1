"""Captions held against the scenes: by hand, and the annotators' own, which never lie."""

import dataclasses

import pytest

from har_jax.data import builder
from har_jax.errors import UserError
from har_jax.miniature import scenes
from har_jax.miniature.scenes.world import Scene, Thing
from har_jax.miniature.truth import Truth, shape_words, shapes_named, truth_of

SIZES = {"train": 20, "val": 5, "test": 40}


def thing(colour, shape):
    return Thing(shape, colour, "plain", "large", 20, 20, 25)


SCENE = Scene("night", "left", (thing("red", "star"), thing("blue", "square")))


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A large striped red ball next to a box.", [("red", "circle"), (None, "square")]),
        ("two bright red plus signs and a dark blue half moon",
         [("red", "cross"), ("blue", "crescent")]),
        ("A love heart in the grass with a moon", [(None, "heart"), (None, "crescent")]),
        ("A red star with squares under the stars.", [("red", "star")]),
        ("Boxes, crosses, discs and donuts",
         [(None, s) for s in ("square", "cross", "circle", "ring")]),
        ("a starry night sky with two shapes on top of the table, surrounding it", []),
        ("A golden spotted cone", [(None, "triangle")]),
        ("", []),
    ],
)  # fmt: skip
def test_shape_words(caption, named):
    assert list(shape_words(caption)) == named


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("A red star next to a blue box.", Truth(1, 1, 1, 2, 2, 2, 2)),
        ("A red star next to a blue moon.", Truth(1, 1, 0, 2, 1, 2, 1)),
        ("A blue star and a cube.", Truth(1, 1, 1, 2, 2, 1, 0)),
        ("Two shapes under the stars.", Truth(1, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_one_caption(caption, truth):
    assert truth_of(caption, SCENE) == truth


@pytest.fixture(scope="module", params=[None, 0.8])
def dataset(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("truth") / "scenes"
    settings = {"seed": 5, "sizes": SIZES} | ({"skew": request.param} if request.param else {})
    examples = list(scenes.generate(5, SIZES, skew=request.param))
    kw = {"name": "scenes", "splits": list(SIZES), "description": "", "settings": settings}
    builder.write(directory, examples, **kw)
    return directory, examples


def test_annotators_tell_the_truth(dataset):
    directory, examples = dataset
    for split, size in SIZES.items():
        total = Truth()
        for k in range(5):
            captions = {e.image_id: e.captions[k] for s, e in examples if s == split}
            total += shapes_named(directory, captions, split)
        assert total.captions == 5 * size
        assert total.naming == total.true_captions > 4 * size
        assert total.words == total.true_words and total.pairs == total.true_pairs
        # A colour stands right before every noun of theirs.
        assert total.pairs == total.words


def test_captions_of_other_images_are_found_out(dataset):
    directory, examples = dataset
    ids = [e.image_id for split, e in examples if split == "test"]
    texts = [e.captions[0] for split, e in examples if split == "test"]
    told = shapes_named(directory, dict(zip(ids, texts[1:] + texts[:1], strict=True))).to_dict()
    assert told["captions"] == 40 and told["words_true"] < 0.7 and told["pairs_true"] < 0.4


def test_shares_of_nothing_are_zero():
    assert set(Truth().to_dict().values()) == {0}
    assert len(dataclasses.fields(Truth)) == 7


def test_mistakes_are_told(dataset, tmp_path):
    directory, _ = dataset
    with pytest.raises(UserError, match="1 of 1 captions are of images that split 'test'"):
        shapes_named(directory, {7: "a ball"})
    with pytest.raises(UserError, match="no split 'tset'"):
        shapes_named(directory, {}, "tset")
    example = next(scenes.generate(0, SIZES))[1]
    other = tmp_path / "photographs"
    kw = {"name": "mine", "splits": ["train"], "description": "", "settings": {}}
    builder.write(other, [("train", example)], **kw)
    with pytest.raises(UserError, match="holds no scenes"):
        shapes_named(other, {})
