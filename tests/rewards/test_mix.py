"""Sums of rewards: what a specification says, what every part is worth, and what a sum reports."""

import concurrent.futures
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.errors import UserError
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.rewards.bleu import BleuReward
from har_jax.rewards.cider_d import CiderDReward
from har_jax.rewards.contract import Reward, checked
from har_jax.rewards.mix import MixedReward, build, parse
from har_jax.rewards.per_caption import BiasPenalty, LengthPenalty, RepetitionPenalty
from har_jax.text import ptb
from tests.bleu import corpus_bleu

REFERENCES = {
    10: ["A man runs with a dog.", "The dog and his owner run.", "A person runs"],
    20: ["Two cats sleep on a bed.", "Cats on a bed, asleep"],
    30: ["A woman rides a horse", "She rides."],
}
DF = DocumentFrequency.from_references(
    [[ptb.words(t) for t in texts] for texts in REFERENCES.values()], name="train"
)
IDS = np.array([10, 20, 30])
CAPTIONS = [
    ["A man runs.", "A woman runs with a dog", "a a a a"],
    ["Two cats sleep", "his cats sleep on a bed", ""],
    ["A woman rides", "A man rides a horse with a horse", "a rider"],
]
ENDED = np.array([[True, False, True]] * 3)


def longer(image_ids, captions, ended, references):
    """A user's function: counts letters, and sees the references."""
    pairs = zip(image_ids, captions, strict=True)
    return [[len(text) / len(references[i][0]) for text in group] for i, group in pairs]


def wrong_shape(image_ids, captions, ended):
    return np.zeros(3)


def no_numbers(image_ids, captions, ended):
    return captions


def not_finite(image_ids, captions, ended):
    return np.full(ended.shape, np.nan)


def test_parse():
    expected = {"cider_d": 1.0, "bleu": 0.5, "bias": -1.0}
    assert parse("cider_d + 0.5*bleu - 1.0*bias") == expected
    assert parse(" cider_d+bleu * .5 -bias ") == expected
    assert parse({"cider_d": 1, "bleu": 0.5, "bias": -1}) == expected
    assert parse("-2e-1*my.module:f") == {"my.module:f": -0.2}
    assert list(parse("b + a")) == ["b", "a"]


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}(\.[a-z]{1,4}:[a-z]{1,4})?", fullmatch=True),
        st.floats(-1e6, 1e6),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(weights):
    text = " ".join(f"{'-' if w < 0 else '+'} {abs(w)!r}*{name}" for name, w in weights.items())
    assert parse(text) == weights


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ({}, "is empty"),
        ("cider_d bleu", "cannot be read at 'bleu'"),
        ("cider_d + ", r"cannot be read at '\+'"),
        ("2*cider_d*3", "cannot be read"),
        ("cider_d + 0.5", "cannot be read"),
        ("cider_d * x", "cannot be read"),
        ("cider_d - cider_d", "twice"),
        ({"cider_d": "1"}, "need a finite number"),
        ({"cider_d": True}, "need a finite number"),
        ({"cider_d": float("nan")}, "need a finite number"),
        ("1e999*cider_d", "need a finite number"),
        (3, "a reward is a int"),
        ("cider-d", "cannot be read|unknown reward 'cider'"),
        ("ciderd", "did you mean 'cider_d'"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("tests.rewards.test_mix:longr", "did you mean 'longer'"),
        ("tests.rewards.test_mix:DF", "no function 'DF'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_specifications(spec, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        build(spec, DF, REFERENCES)


def test_cider_d_alone_is_cider_d():
    for eos in (True, False):
        reward, plain = (
            build("cider_d", DF, REFERENCES, eos=eos),
            CiderDReward(DF, REFERENCES, eos=eos),
        )
        np.testing.assert_array_equal(reward(IDS, CAPTIONS, ENDED), plain(IDS, CAPTIONS, ENDED))
        assert reward.signature == plain.signature
    assert isinstance(reward, Reward)


def test_a_sum_and_its_parts():
    spec = "cider_d + 0.5*bleu - 2*bias - repetition - length + 0*tests.rewards.test_mix:longer"
    reward = build(spec, DF, REFERENCES)
    total, parts = reward.breakdown(IDS, CAPTIONS, ENDED)
    alone = {
        "cider_d": CiderDReward(DF, REFERENCES),
        "bleu": BleuReward(REFERENCES),
        "bias": BiasPenalty(REFERENCES),
        "repetition": RepetitionPenalty(),
        "length": LengthPenalty(REFERENCES),
    }
    for name, part in alone.items():
        np.testing.assert_array_equal(parts[name], checked(part, IDS, CAPTIONS, ENDED))
    assert parts["tests.rewards.test_mix:longer"][0, 0] == np.float32(11 / 22)
    expected = (
        parts["cider_d"]
        + 0.5 * parts["bleu"]
        - 2 * parts["bias"]
        - parts["repetition"]
        - parts["length"]
    )
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    assert total.dtype == np.float32
    np.testing.assert_array_equal(total, checked(reward, IDS, CAPTIONS, ENDED))


def test_a_single_reward():
    reward = MixedReward.single(BleuReward(REFERENCES))
    np.testing.assert_array_equal(
        reward(IDS, CAPTIONS, ENDED), BleuReward(REFERENCES)(IDS, CAPTIONS, ENDED)
    )
    assert reward.signature == BleuReward(REFERENCES).signature
    assert reward.weights == {"reward": 1.0}


def test_signature_names_parts_and_weights():
    one, two = (build(f"cider_d - {w}*bias", DF, REFERENCES).signature for w in ("1.0", "0.5"))
    assert one == f"1.0*{CiderDReward(DF, REFERENCES).signature} + -1.0*bias[lic]+ptb"
    assert one != two
    assert build("bias_balanced", None, REFERENCES).signature == "bias[balanced]+ptb"
    mine = build("tests.rewards.test_mix:longer", None, REFERENCES).signature
    assert mine.startswith("tests.rewards.test_mix:longer[") and len(mine.split("[")[1]) == 9


def test_threads():
    reward = build("cider_d + bleu - bias - length - repetition", DF, REFERENCES)
    expected = reward(IDS, CAPTIONS, ENDED)
    fresh = build("cider_d + bleu - bias - length - repetition", DF, REFERENCES)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: fresh(IDS, CAPTIONS, ENDED), range(64)):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [("wrong_shape", "shape"), ("no_numbers", "no array of numbers"), ("not_finite", "finite")],
)
def test_a_faulty_function_is_named(name, message):
    reward = build({f"tests.rewards.test_mix:{name}": 1.0, "bias": -1}, None, REFERENCES)
    with pytest.raises(UserError, match=message) as error:
        reward(IDS, CAPTIONS, ENDED)
    assert name in str(error.value)


def test_what_the_parts_need():
    with pytest.raises(UserError, match="document frequencies"):
        build("cider_d", None, REFERENCES)
    with pytest.raises(UserError, match="at least one"):
        build("bleu", None, {})
    with pytest.raises(UserError, match="image 3"):
        build("length", None, {3: []})
    with pytest.raises(UserError, match="same names"):
        MixedReward({"a": RepetitionPenalty()}, {"b": 1.0})
    for spec in ("bleu", "bias", "length"):
        with pytest.raises(UserError, match="no references for image 99"):
            build(spec, None, REFERENCES)(np.array([99]), [["x"]], np.array([[True]]))


WORDS = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the"]), max_size=8)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 4))
def test_bleu_is_pycocoevalcaps_per_image(own, references, n):
    reward = BleuReward({1: [" ".join(words) for words in references]}, n=n)
    got = reward(np.array([1]), [[" ".join(own)]], np.array([[True]]))
    _, per_image = corpus_bleu({1: references}, {1: own}, n=n)
    np.testing.assert_allclose(got[0, 0], per_image[1][-1], rtol=1e-6, atol=1e-30)


def test_bleu_by_hand():
    reward = BleuReward({1: ["a dog runs far", "a dog"]}, n=2)
    got = reward(np.array([1]), [["a dog sleeps", "a dog runs far"]], np.array([[True, True]]))
    # 2 of 3 words and 1 of 2 bigrams; the lengths 4 and 2 are as near, and the shorter one counts
    assert got[0] == pytest.approx([np.sqrt(2 / 3 * 1 / 2), 1.0], rel=1e-6)
    with pytest.raises(UserError, match="1, 2, 3 or 4"):
        BleuReward(REFERENCES, n=5)


def test_bias_by_hand():
    reward = BiasPenalty(REFERENCES)
    assert reward(IDS, CAPTIONS, ENDED).tolist() == [[0, 1, 0], [0, 0.5, 0], [0, 1, 0]]


def test_length_and_repetition_by_hand():
    ends = np.array([[True] * 3])
    texts = [["two cats sleep on a bed now", "cats", "cats sleep on a bed"]]
    got = LengthPenalty(REFERENCES)(np.array([20]), texts, ends)  # references of 6 and 5 words
    assert got[0] == pytest.approx([1 / 5.5, 4 / 5.5, 0])
    got = RepetitionPenalty()(np.array([20]), [["a a a a", "a dog", ""]], ends)
    assert got[0] == pytest.approx([2 / 3, 0, 0])


def test_batches_of_any_size():
    reward = build("cider_d + bleu - bias - length - repetition", DF, REFERENCES)
    for b, r in itertools.product((1, 2), (1, 5)):
        got = reward(IDS[:b], [["a dog"] * r] * b, np.ones((b, r), bool))
        assert got.shape == (b, r) and got.dtype == np.float32


@pytest.mark.parametrize(
    "name", ["cider_d", "bleu", "bias", "bias_balanced", "length", "repetition"]
)
def test_no_images_give_no_rewards_of_the_same_shape(name):
    """A device may own no row."""
    values = build(name, DF, REFERENCES)(np.zeros(0, np.int64), [], np.zeros((0, 3), bool))
    assert values.shape == (0, 3) and values.dtype == np.float32


def test_tokens_with_a_space_inside_come_apart():
    """PTB's "1 1/2" is one token with a hard space; pycocoevalcap's scorers split it."""
    texts = {1: ["1 1/2 pizzas on it"]}
    _, per_image = corpus_bleu({1: [["1", "1/2", "pizzas", "on", "it"]]}, {1: ["1", "1/2"]}, n=2)
    one = build({"bleu": 1.0}, None, texts)
    assert BleuReward(texts, n=2)(np.array([1]), [["1 1/2"]], ENDED[:1, :1]) == pytest.approx(
        per_image[1][1], abs=1e-6
    )
    assert one(np.array([1]), [["1 1/2 pizzas on it"]], ENDED[:1, :1]) == pytest.approx(1.0)


@pytest.mark.parametrize("image_id", [1.5, -1, "img_1", None])
@pytest.mark.usefixtures("untyped")
def test_an_id_that_is_no_number_is_refused(image_id, monkeypatch):
    """A fraction was read as the whole number below it: the reward of another image."""
    references = {1: ["a dog runs"], 2: ["two cats"]}
    df = DocumentFrequency.from_references([[["a", "dog", "runs"]], [["two", "cats"]]])
    ended, group = np.ones((1, 1), bool), [["a dog"]]
    for name in ("cider_d", "bleu", "length", "bias"):
        part: Any = build(name, df, references).parts[name]
        values = [part([written], group, ended) for written in (1, "1", 1.0)]
        assert values[0] == values[1] == values[2]
        with pytest.raises(UserError, match="the id is"):
            part([image_id], group, ended)
    twice: Any = {1: ["a dog"], "1": ["a cat"]}
    with pytest.raises(UserError, match="two of the references' image ids are one"):
        build("cider_d", df, twice)
