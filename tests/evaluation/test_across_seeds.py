"""Means, deviations and differences over seeds, against scipy and against numbers by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from har_jax.errors import UserError
from har_jax.evaluation.across_seeds import (
    Scored,
    Spread,
    contrast,
    spread_of_difference,
    spread_over_seeds,
    summarise,
)
from har_jax.evaluation.bootstrap import Statistics, paired


def scored(by_seed, *, deterministic=False):
    """From CIDEr [seeds, images]."""
    rows = np.asarray(by_seed, float)
    statistics = [Statistics.of([{"CIDEr": x} for x in row]) for row in rows]
    return Scored({"CIDEr": rows.mean(1).tolist()}, statistics, deterministic)


A, B = [1.30, 1.42, 1.38, 1.35, 1.41], [1.21, 1.30, 1.33, 1.24, 1.28]


def test_linked_systems_are_compared_by_the_paired_t_test():
    spread = spread_of_difference(A, B, linked=True)
    found = spread.around(np.mean(A) - np.mean(B))
    expected = scipy.stats.ttest_rel(A, B)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))


def test_others_by_welch_and_a_deterministic_one_is_a_constant():
    spread = spread_of_difference(A, B[:3], linked=False)
    expected = scipy.stats.ttest_ind(A, B[:3], equal_var=False)
    found = spread.around(np.mean(A) - np.mean(B[:3]))
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))
    spread = spread_of_difference(A, [1.30], linked=False, deterministic=(False, True))
    expected = scipy.stats.ttest_1samp(A, 1.30)
    assert spread.around(np.mean(A) - 1.30)["p"] == pytest.approx(expected.pvalue)


def test_one_seed_of_what_varies_says_nothing_of_others():
    assert spread_over_seeds([1.0], deterministic=False) is None
    assert spread_of_difference([1.0], [0.5], linked=True) is None
    assert spread_of_difference(A, [0.5], linked=False) is None
    with pytest.raises(UserError, match="systems of 5 and 1 seeds cannot be paired"):
        spread_of_difference(A, [0.5], linked=True)


def test_variances_are_added_and_their_degrees_of_freedom_are_satterthwaites():
    total = Spread(0.04, 4) + Spread(0.09, 9)
    assert total.variance == pytest.approx(0.13)
    assert total.df == pytest.approx(0.13**2 / (0.04**2 / 4 + 0.09**2 / 9))
    known = Spread(0.04, 4) + Spread(0.04, math.inf)
    assert known.df == pytest.approx(16)
    nothing = (Spread(0.0, math.inf) + Spread(0.0, math.inf)).around(0.0)
    assert nothing == {"interval": [0.0, 0.0], "p": 1.0}


def test_a_summary_has_the_sample_deviation():
    rng = np.random.default_rng(0)
    images = rng.normal(1, 0.3, (4, 200))
    found = summarise(scored(images))["CIDEr"]
    means = images.mean(1)
    assert found["mean"] == pytest.approx(means.mean())
    assert found["std"] == pytest.approx(np.std(means, ddof=1))
    once = summarise(scored(images[:1], deterministic=True))["CIDEr"]
    assert once["std"] is None
    error = images[0].std() / math.sqrt(200)  # of the images alone
    low, high = once["interval"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_contrast_has_images_seeds_and_both():
    rng = np.random.default_rng(1)
    image, seeds = rng.normal(0, 0.3, 300), rng.normal(0, 0.02, (3, 1))
    mle = 1 + image + seeds + rng.normal(0, 0.05, (3, 300))
    scst = mle + 0.05 + rng.normal(0, 0.1, (3, 300)) + rng.normal(0, 0.01, (3, 1))
    found = contrast(scored(scst), scored(mle), linked=True)["CIDEr"]
    assert found["basis"] == "images and seeds"
    assert found["difference"] == pytest.approx((scst - mle).mean())
    expected = scipy.stats.ttest_rel(scst.mean(1), mle.mean(1))
    assert found["seeds"]["p"] == pytest.approx(expected.pvalue)
    by_image = (scst - mle).mean(0)
    error = by_image.std() / math.sqrt(300)
    low, high = found["images"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)

    def width(part):
        return found[part]["interval"][1] - found[part]["interval"][0]

    assert width("both") > width("images")


def test_images_alone_are_the_paired_bootstrap_of_two_evaluations():
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 0.3, (1, 100)), rng.normal(0.9, 0.3, (1, 100))
    ours, theirs = scored(a, deterministic=True), scored(b, deterministic=True)
    found = contrast(ours, theirs, linked=False)["CIDEr"]
    expected = paired(ours.statistics[0], theirs.statistics[0])["CIDEr"]
    assert found["images"] == {k: expected[k] for k in ("interval", "p")}
    assert found["seeds"] is None and found["basis"] == "images"


def test_a_metric_without_values_of_images_has_seeds_only():
    statistics = [Statistics.of([{"CIDEr": x} for x in row]) for row in np.ones((2, 4))]
    a = Scored({"METEOR": [0.30, 0.32]}, statistics)
    b = Scored({"METEOR": [0.25, 0.28]}, statistics)
    found = contrast(a, b, linked=True)["METEOR"]
    assert found["images"] is None and found["basis"] == "seeds"
    assert found["both"] == found["seeds"]
    assert found["both"]["p"] == pytest.approx(scipy.stats.ttest_rel([0.30, 0.32], [0.25, 0.28])[1])
    other = [Statistics.of([{"CIDEr": 1.0}] * 3)] * 2
    with pytest.raises(UserError, match="cannot be paired"):
        contrast(a, Scored({"METEOR": [0.1, 0.2]}, other), linked=True)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Many worlds with a known difference of 0.05, three seeds and 60 images in each."""
    rng = np.random.default_rng(3)
    covered = 0
    for world in range(150):
        shared = rng.normal(0, 0.3, 60)
        difference = 0.05 + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.1, (1, 60))
        base = 1 + shared + rng.normal(0, 0.05, (3, 60))
        ours = base + difference + rng.normal(0, 0.1, (3, 60))
        found = contrast(scored(ours), scored(base), linked=True, seed=world, resamples=200)
        low, high = found["CIDEr"]["both"]["interval"]
        covered += low <= 0.05 <= high
    assert 0.92 <= covered / 150 <= 1.0
