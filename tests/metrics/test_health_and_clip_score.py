"""Collapse signs and CLIPScore on numbers worked out by hand."""

import numpy as np
import pytest

from har_jax.errors import UserError
from har_jax.metrics import health
from har_jax.metrics.embedding_scores import clip_score, ref_clip_score


def test_health():
    captions = [["a", "man", "with", "a"], ["a", "dog"], ["a", "dog"], []]
    assert health.bad_end_rate(captions) == 0.25
    assert health.mean_length(captions) == 2.0
    assert health.empty_rate(captions) == 0.25
    assert health.distinct_captions(captions) == 0.75
    assert health.vocabulary_size(captions) == 4
    assert health.repetition_rate([["a", "b", "a", "b", "a"]]) == 0.5  # ab ba ab ba
    assert health.repetition_rate([["a"]]) == 0.0
    assert health.summary(iter(captions))["bad_end_rate"] == 0.25
    assert all(value == 0 for value in health.summary([]).values())


def test_clip_score_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], np.float32)
    captions = np.array([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]], np.float16)
    scores = clip_score(images, captions)
    np.testing.assert_allclose(scores, [2.5 * 0.6, 2.5, 0.0])
    references = [
        np.array([[1.0, 0.0], [0.6, 0.8]]),  # cosines with the caption: 0.6 and 1
        np.array([[1.0, 0.0]]),  # 0
        np.array([[1.0, 0.0], [0.0, 1.0]]),  # -1 and 0
    ]
    got = ref_clip_score(images, captions, references)
    np.testing.assert_allclose(got, [2 * 1.5 * 1.0 / 2.5, 0.0, 0.0], atol=1e-12)


def test_the_references_cosine_is_not_scaled():
    """clipscore.py scales CLIP-S by 2.5, but not the reference term of RefCLIP-S."""
    image, caption = np.array([[1.0, 0.0]]), np.array([[0.8, 0.6]])
    reference = np.array([[0.8, -0.6]])
    first, second = 2.5 * 0.8, 0.8 * 0.8 - 0.6 * 0.6  # 2.0 and 0.28
    (value,) = ref_clip_score(image, caption, [reference])
    assert value == pytest.approx(2 * first * second / (first + second), abs=1e-12)
    scaled = 2 * first * 2.5 * second / (first + 2.5 * second)
    assert abs(value - scaled) > 0.5


def test_a_caption_unlike_all_references_scores_nothing():
    """The released code lets the two terms cancel there: -499,999 of a caption like its image."""
    image = caption = np.array([[1.0, 0.0]])
    cosine = -2.5 + 1e-5  # of the first term; as good as its negative
    reference = np.array([[cosine / 2.5, np.sqrt(1 - (cosine / 2.5) ** 2)]])
    small = np.array([[0.4, np.sqrt(1 - 0.16)]])  # CLIP-S 1
    (value,) = ref_clip_score(image, small, [-small])
    assert value == 0
    (value,) = ref_clip_score(image, caption, [reference])
    assert value == 0
    (value,) = ref_clip_score(image, caption, [np.concatenate([reference, caption])])
    assert value == pytest.approx(2 * 2.5 / 3.5)


@pytest.mark.usefixtures("untyped")
def test_clip_score_bad_input(monkeypatch):
    ones = np.ones((2, 3))
    with pytest.raises(UserError, match="differ"):
        clip_score(ones, np.ones((2, 4)))
    with pytest.raises(UserError, match="image embedding 1 is zero"):
        clip_score(np.array([[1.0, 0], [0, 0]]), np.ones((2, 2)))
    with pytest.raises(UserError, match="caption embedding 0"):
        clip_score(ones, np.full((2, 3), np.nan))
    with pytest.raises(UserError, match="row 1 has no references"):
        ref_clip_score(ones, ones, [np.ones((1, 3)), np.ones((0, 3))])
