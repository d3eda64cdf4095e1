"""Unsupported gendered words: the definition by hand, and the figures around it."""

import itertools

import pytest

from har_jax.errors import UserError
from har_jax.metrics import gender

MAN, WOMAN, DOG = ["a", "man"], ["a", "woman"], ["a", "dog"]


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        (MAN, [MAN, DOG], 0),
        (MAN, [WOMAN, DOG], 1),
        (MAN, [DOG], 0.5),
        (WOMAN, [MAN], 1),
        (["man", "woman"], [DOG], 1),
        (["man", "woman"], [MAN], 1),
        (["man", "woman"], [MAN, WOMAN], 0),
        (DOG, [MAN], 0),
        ([], [MAN], 0),
    ],
)
def test_unsupported(caption, references, expected):
    found = gender.unsupported(gender.mentions(caption), gender.support(references))
    assert found == expected


def test_lists():
    male, female = gender.LISTS["lic"]
    assert len(male) == 27 and len(female) == 23
    assert "queen" in female and "king" not in male
    male, female = gender.LISTS["balanced"]
    assert len(male) == len(female) and "king" in male and "pregnant" not in female
    for (male, female), word in itertools.product(gender.LISTS.values(), ("man", "he")):
        assert not male & female and word in male


def test_summary():
    references = {1: [MAN, MAN, DOG], 2: [WOMAN, WOMAN], 3: [DOG], 4: [MAN, WOMAN], 5: [MAN]}
    predictions = {1: WOMAN, 2: WOMAN, 3: MAN, 4: DOG, 5: DOG}
    found = gender.summary(references, predictions)
    assert found == {
        "bias": pytest.approx(0.3),
        "unsupported_rate": 0.4,
        "contradiction_rate": 0.2,
        "neutral_rate": 0.4,
        "recall_male": 0.0,
        "recall_female": 1.0,
        "error_male": 0.5,
        "error_female": 0.0,
    }
    assert gender.summary({3: [DOG]}, {3: DOG})["recall_male"] is None


def test_wrong_calls():
    with pytest.raises(UserError, match="did you mean 'balanced'"):
        gender.mentions(DOG, "balancd")
    with pytest.raises(UserError, match="at least one"):
        gender.support([])
    with pytest.raises(UserError, match="at least one prediction"):
        gender.summary({}, {})
    with pytest.raises(UserError, match="image 2"):
        gender.summary({1: [DOG]}, {2: DOG})
