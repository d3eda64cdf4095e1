"""Intervals and p-values: against theory, against scipy, and how they are read from two systems."""

import time

import numpy as np
import pytest

from har_jax.errors import UserError
from har_jax.evaluation.bootstrap import Statistics, confidence, interval, paired, resample
from har_jax.evaluation.compare import Other, compare
from har_jax.metrics.corpus import score_captions
from har_jax.reports.tables import against_table
from tests.bleu import bleu_counts, corpus_bleu

RNG = np.random.default_rng(0)


def system(values):
    return Statistics.of([{"CIDEr": float(value)} for value in values])


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = RNG.normal(1.0, 0.5, 4000)
    low, high = confidence(system(values))["intervals"]["CIDEr"]
    margin = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_the_resamples_are_scipys_in_distribution():
    from scipy.stats import bootstrap

    values = RNG.exponential(1.0, 300)
    theirs = bootstrap(
        (values,),
        np.mean,
        n_resamples=4000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    (drawn,) = resample([system(values)], resamples=4000)
    low, high = interval(drawn["CIDEr"])
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_bleu_is_the_corpus_bleu_of_the_drawn_images():
    words = ["a", "dog", "runs", "far"]
    truth = {i: [RNG.choice(words, 8).tolist() for _ in range(3)] for i in range(30)}
    written = {i: RNG.choice(words, RNG.integers(3, 10)).tolist() for i in range(30)}
    counts = bleu_counts(truth, written)
    statistics = Statistics.of([{}] * 30, counts)
    assert statistics.metrics == ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
    drawn = [3, 3, 5, 20, 0, *range(25)]
    weights = np.bincount(drawn, minlength=30).astype(float)
    got = statistics.values((weights @ statistics.columns)[None])
    expected, _ = corpus_bleu(
        {k: truth[i] for k, i in enumerate(drawn)}, {k: written[i] for k, i in enumerate(drawn)}
    )
    assert [float(value[0]) for value in got.values()] == pytest.approx(expected, rel=1e-11)


def test_the_same_images_are_drawn_for_both():
    values = RNG.normal(1.0, 1.0, 500)
    found = paired(system(values + 0.01), system(values))["CIDEr"]
    # A constant difference, far below the spread of either: only pairing sees it.
    assert found["interval"] == pytest.approx([0.01, 0.01])
    assert found["p"] == pytest.approx(2 / 1001)


def test_p_is_uniform_where_nothing_differs():
    ps = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(0, 1, (2, 80))
        ps.append(paired(system(a), system(b), seed=seed, resamples=200)["CIDEr"]["p"])
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11
    assert 0.4 < np.mean(ps) < 0.6


def test_metrics_that_one_image_lacks_are_left_out():
    rows = [{"CIDEr": 1.0, "CLIPScore": 0.7}, {"CIDEr": 2.0}]
    assert Statistics.of(rows).metrics == ("CIDEr",)
    assert Statistics.of(rows).corpus() == {"CIDEr": 1.5}
    assert Statistics.of([{}, {}]).corpus() == {}
    assert confidence(Statistics.of([{}, {}]))["intervals"] == {}


def test_wrong_calls():
    with pytest.raises(UserError, match="cannot be paired"):
        paired(system([1, 2]), system([1, 2, 3]))
    with pytest.raises(UserError, match="at least 2"):
        paired(system([1]), system([1]))


def test_five_thousand_images_take_less_than_a_second():
    counts = RNG.integers(1, 12, (5000, 10))
    rows = [{"CIDEr": 1.0, "ROUGE_L": 0.5, "CLIPScore": 0.7}] * 5000
    statistics = Statistics.of(rows, counts)
    start = time.process_time()
    confidence(statistics)
    assert time.process_time() - start < 1


REFERENCES = {
    1: ["A red circle.", "a red circle on a square"],
    2: ["Two blue squares", "a pair of squares"],
    3: ["One green star", "a star that is green"],
}
WRITTEN = {1: "a red circle", 2: "two squares of blue", 3: "a green star"}


def clip_rows(shift=0.0):
    return {i: {"CLIPScore": 0.7 + shift, "RefCLIPScore": 0.8} for i in REFERENCES}


def compared(signature, other_signature):
    scores = score_captions(REFERENCES, WRITTEN)
    rows = [scores.per_image[i] | clip_rows(0.1)[i] for i in WRITTEN]
    ours = Statistics.of(rows, scores.bleu_counts)
    assert ours.corpus()["Bleu_4"] == pytest.approx(scores.corpus["Bleu_4"], rel=1e-11)
    other = Other("them", dict.fromkeys(WRITTEN, "a dog"), clip_rows(), other_signature)
    return compare(other, ours, REFERENCES, list(WRITTEN), signature=signature)


def test_clip_scores_are_compared_only_where_one_clip_gave_both():
    same = compared("CIDEr+CLIPScore[x]", "BLEU+CLIPScore[x]")
    assert same["metrics"]["CLIPScore"]["difference"] == pytest.approx(0.1)
    assert "CLIPScore" not in compared("CIDEr+CLIPScore[x]", "CIDEr+CLIPScore[y]")["metrics"]
    assert "CLIPScore" not in compared("CIDEr", "CIDEr")["metrics"]
    assert same["metrics"]["CIDEr"]["other"] < same["metrics"]["CIDEr"]["value"]
    text = against_table(same)
    assert "CLIPScore" in text and "+0.100" in text and "against them: 3 images" in text
