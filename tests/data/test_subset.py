"""`data.fraction` and `data.shots`: fixed, nested subsets that read like a split."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.data.dataset import open_split
from har_jax.data.overlap import image_set
from har_jax.data.subset import Subset, choose, take
from har_jax.errors import UserError

IDS = st.lists(st.integers(0, 2**53), min_size=1, max_size=40, unique=True)


@given(IDS, st.data())
def test_smaller_subsets_are_inside_larger_ones(ids, data):
    a, b = sorted(data.draw(st.integers(0, len(ids))) for _ in range(2))
    small, large = choose(ids, a), choose(ids, b)
    assert set(small) <= set(large) and len(small) == a
    assert large == sorted(large)
    # The order of the dataset changes nothing about which images are chosen.
    order = data.draw(st.permutations(ids))
    assert {order[i] for i in choose(order, a)} == {ids[i] for i in small}


def test_the_subset_is_fixed_for_ever():
    """Published low-resource figures hang on these numbers: they must not change."""
    assert choose(range(100_001, 100_031), 5) == [7, 13, 14, 23, 27]
    assert choose(range(100_001, 100_031), 5, seed=1) != [7, 13, 14, 23, 27]


def test_it_reads_like_a_split(scenes_dir):
    whole = open_split(scenes_dir, "train")
    part = take(whole, shots=7)
    assert isinstance(part, Subset) and len(part) == 7
    positions = choose(whole.ids, 7)
    assert part.ids == [whole.ids[i] for i in positions]
    assert list(part) == [whole[i] for i in positions]
    assert part[-1] == whole[positions[-1]]
    assert part.filenames == [whole.filenames[i] for i in positions]
    assert part.references() == {i: whole.references()[i] for i in part.ids}
    assert image_set(part).contents < image_set(whole).contents
    copy = pickle.loads(pickle.dumps(part))
    assert list(copy) == list(part) and copy.captions == part.captions
    with pytest.raises(IndexError):
        part[7]


def test_sizes(scenes_dir):
    whole = open_split(scenes_dir, "train")  # 30 images
    assert take(whole) is whole
    assert [len(take(whole, fraction=f)) for f in (0.001, 0.1, 0.5, 0.999)] == [1, 3, 15, 30]
    assert set(take(whole, fraction=0.1).ids) < set(take(whole, shots=15).ids)
    for options, message in (
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"fraction": 1.5}, "above 0 and at most 1"),
        ({"fraction": float("nan")}, "above 0 and at most 1"),
        ({"shots": -1}, "above 0, or 0 for all"),
        ({"shots": 31}, "more than the 30 images"),
        ({"shots": 5, "fraction": 0.5}, "are both set; give one"),
    ):
        with pytest.raises(UserError, match=message):
            take(whole, **options)
