"""The shuffle control: every image is scored with another one's caption."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.errors import UserError
from har_jax.evaluation.score import derangement, shuffle_control, shuffled

REFERENCES = {
    1: ["a red circle", "one red circle"],
    2: ["two blue squares", "a pair of blue squares"],
    3: ["the green triangle left of a star", "green triangle beside a star"],
}


@given(st.integers(2, 300), st.integers(0, 2**31))
def test_nothing_stays_in_its_place(n, seed):
    found = derangement(n, seed)
    assert sorted(found.tolist()) == list(range(n))
    assert not np.any(found == np.arange(n))
    assert np.array_equal(found, derangement(n, seed))


def test_one_image_cannot_be_shuffled():
    with pytest.raises(UserError, match="at least 2"):
        derangement(1, 0)


def test_shuffled_keeps_images_and_captions():
    texts = {i: f"caption {i}" for i in range(20)}
    other = shuffled(texts, seed=3)
    assert list(other) == list(texts)
    assert sorted(other.values()) == sorted(texts.values())
    assert all(other[i] != texts[i] for i in texts)


def test_a_captioner_that_looks_falls_and_a_blind_one_does_not():
    seeing = {i: texts[0] for i, texts in REFERENCES.items()}
    control = shuffle_control(REFERENCES, seeing, real=3.0, seed=0)
    assert control["CIDEr"] == 3.0 and control["ratio"] == control["CIDEr_shuffled"] / 3.0
    assert control["ratio"] < 0.05
    blind = dict.fromkeys(REFERENCES, "a red circle")
    same = shuffle_control(REFERENCES, blind, real=1.0, seed=0)
    unshuffled = shuffle_control(REFERENCES, blind, real=1.0, seed=1)
    assert same["CIDEr_shuffled"] == unshuffled["CIDEr_shuffled"] > 0


def test_no_ratio_to_a_score_of_zero():
    nothing = dict.fromkeys(REFERENCES, "xyz")
    assert shuffle_control(REFERENCES, nothing, real=0.0, seed=0)["ratio"] is None
