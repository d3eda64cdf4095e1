"""BLEU from sums of per-image counts is corpus BLEU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.errors import UserError
from har_jax.metrics.bleu_counts import bleu_of_counts
from tests.bleu import bleu_counts, corpus_bleu

caption = st.lists(st.sampled_from(["a", "dog", "runs", "the", "ball"]), max_size=9)
image = st.tuples(caption, st.lists(caption, min_size=1, max_size=4))


@given(st.lists(image, min_size=1, max_size=5))
def test_equals_corpus_bleu(images):
    predictions = {10 * i: own for i, (own, _) in enumerate(images)}
    references = {10 * i: captions for i, (_, captions) in enumerate(images)}
    counts = bleu_counts(references, predictions)
    assert counts.shape == (len(images), 10)
    expected, per_image = corpus_bleu(references, predictions)
    np.testing.assert_allclose(bleu_of_counts(counts.sum(0)), expected, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(
        bleu_of_counts(counts), list(per_image.values()), rtol=1e-11, atol=1e-300
    )


def test_counts_by_hand():
    references = {1: [["a", "dog", "a"], ["a", "dog", "runs", "far", "off"]]}
    (row,) = bleu_counts(references, {1: ["a", "a", "a", "dog"]}).tolist()
    # "a" at most twice, "dog" once; "a dog"; then nothing. Lengths 3 and 5 are as near: the shorter
    assert row == [3, 1, 0, 0, 4, 3, 2, 1, 4, 3]


def test_wrong_calls():
    with pytest.raises(UserError, match="at least one prediction"):
        bleu_counts({}, {})
    with pytest.raises(UserError, match="image 2"):
        bleu_counts({1: [["a"]]}, {1: ["a"], 2: ["a"]})
