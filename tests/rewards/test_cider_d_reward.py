"""The CIDEr-D reward against a transcription with pycocoevalcap's scorer, and the contract."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider_scorer import CiderScorer

from har_jax.errors import UserError
from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.metrics.corpus import score_captions
from har_jax.metrics.corpus_cider import cider_of
from har_jax.metrics.corpus_ngrams import count_ngrams
from har_jax.rewards.cider_d import CiderDReward
from har_jax.rewards.contract import Reward, checked
from har_jax.text import ptb


def words_of(references):
    return [[ptb.words(text) for text in captions] for captions in references.values()]


def official(train, references, candidate, eos):
    """One candidate with the official scorer: df and number of images of `train`, eos a word."""
    end = " eos" if eos else ""
    scorer = CiderScorer()
    for captions in train.values():
        scorer.cook_append("", [" ".join(ptb.words(c)) + end for c in captions])
    scorer.compute_doc_freq()
    # The scorer takes ln N from the number of `crefs`: this image first, then padding.
    scorer.crefs = []
    scorer.cook_append(candidate, [" ".join(ptb.words(c)) + end for c in references])
    scorer.crefs += [scorer.crefs[0]] * (len(train) - 1)
    scorer.ctest = scorer.ctest[-1:]
    return scorer.compute_cider()[0]


@pytest.mark.parametrize("eos", [True, False])
def test_against_the_official_scorer(real_data, eos):
    path = real_data / "coco_mini" / "annotations"
    captions: dict[int, list[str]] = {}
    splits = {}
    for split in ("train", "val"):
        captions = {}
        for a in json.loads((path / f"captions_{split}2017.json").read_text())["annotations"]:
            captions.setdefault(a["image_id"], []).append(a["caption"])
        splits[split] = captions
    train, val = splits["train"], splits["val"]
    df = DocumentFrequency.from_references(words_of(train), name="train")
    reward = CiderDReward(df, {i: c[1:] for i, c in val.items()}, eos=eos)
    ids = list(val)[:20]
    drawn = [[val[i][0], val[i][0] + " with a", "", "A", "dog " * 200] for i in ids]
    ended = np.array([[True, False, True, True, i % 2 == 0] for i in ids])
    got = reward(np.array(ids), drawn, ended)
    assert got.dtype == np.float32 and got.shape == (20, 5)
    for b, image_id in enumerate(ids):
        for r, caption in enumerate(drawn[b]):
            candidate = " ".join(ptb.words(caption)) + (" eos" if eos and ended[b, r] else "")
            expected = official(train, val[image_id][1:], candidate, eos)
            assert got[b, r] == pytest.approx(expected, abs=1e-6), (image_id, caption)


REFERENCES = {10: ["A dog runs with a ball.", "The dog runs."], 20: ["Two cats sleep on a bed."]}
DF = DocumentFrequency.from_references(words_of(REFERENCES), name="train")


def test_a_caption_that_breaks_off_earns_less_only_with_eos():
    ids, captions = np.array([10]), [["a dog runs with a ball", "a dog runs with a ball with a"]]
    ended = np.array([[True, False]])
    with_eos = CiderDReward(DF, REFERENCES)(ids, captions, ended)[0]
    without = CiderDReward(DF, REFERENCES, eos=False)(ids, captions, ended)[0]
    assert with_eos[0] - with_eos[1] > without[0] - without[1] > 0
    cut = CiderDReward(DF, REFERENCES)(ids, [captions[0][:1]], np.array([[False]]))
    assert cut[0, 0] < with_eos[0]


def test_signature():
    reward = CiderDReward(DF, REFERENCES)
    assert isinstance(reward, Reward)
    assert reward.signature == f"CIDEr-D[n4,s6.0]+eos+df[train,N=2,{DF.fingerprint[:8]}]+ptb"
    assert "+eos" not in CiderDReward(DF, REFERENCES, eos=False).signature


def test_bad_input():
    with pytest.raises(UserError, match="no references for image 99"):
        CiderDReward(DF, REFERENCES)(np.array([99]), [["a"]], np.ones((1, 1), bool))
    bigrams = DocumentFrequency.from_references(words_of(REFERENCES), n=2)
    assert CiderDReward(bigrams, REFERENCES).signature.startswith("CIDEr-D[n2,s6.0]")


# Words, fractions and telephone numbers, which PTB joins by a no-break space, and odd white space.
PIECES = st.sampled_from(
    ["a", "dog", "on", "1/2", "3", "1 1/2", "22 3/4", "2\xa01/2", "555 123-4567", "\xbd", "3-1/2"]
)
SPACES = st.sampled_from([" ", " ", "  ", "\xa0", "\t", "\x85", "\u2009", "\u3000", "\x1f", "\r"])
CAPTION = st.lists(st.tuples(PIECES, SPACES), max_size=8).map(lambda x: "".join(map("".join, x)))
IMAGE = st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3))


@given(st.lists(IMAGE, min_size=2, max_size=4))
def test_the_reward_is_the_evaluated_cider_d(corpus):
    """With the evaluated images' own document frequencies and without EOS they are one metric."""
    references = {i: texts for i, (_, texts) in enumerate(corpus)}
    df = DocumentFrequency.from_references(words_of(references))
    ids, drawn = np.arange(len(corpus)), [[text] for text, _ in corpus]
    scorer = CiderD(df, dict(enumerate(words_of(references))), eos=False)
    got = scorer.score(ids, words_of(dict(enumerate(drawn))))
    rewards = CiderDReward(df, references, eos=False)(ids, drawn, np.ones((len(ids), 1), bool))
    np.testing.assert_array_equal(rewards, got.astype(np.float32))
    tokens = {i: [ptb.tokens(text) for text in texts] for i, texts in references.items()}
    own = {i: ptb.tokens(text) for i, (text, _) in enumerate(corpus)}
    evaluated = cider_of(count_ngrams(tokens, own))
    np.testing.assert_allclose(got[:, 0], evaluated, rtol=0, atol=1e-12)


def test_one_and_a_half_is_two_words_to_reward_and_metric():
    """The reward said 2.280 and the metric 3.009 while the reward took "1 1/2" for one word."""
    references = {1: ["1 1/2 pizzas on a table"], 2: ["two cats"], 3: ["a dog"]}
    captions = {1: "1 1/2 pizzas", 2: "cats", 3: "a 1 1/2 dog"}
    df = DocumentFrequency.from_references(words_of(references))
    got = CiderDReward(df, references, eos=False)(
        np.array([1, 2, 3]), [[text] for text in captions.values()], np.ones((3, 1), bool)
    )
    scores = score_captions(references, captions, metrics=["CIDEr"]).per_image
    np.testing.assert_allclose(got[:, 0], [scores[i]["CIDEr"] for i in captions], rtol=1e-6)


class Fixed:
    signature = "Fixed"

    def __init__(self, values):
        self.values = values

    def __call__(self, image_ids, captions, ended):
        return self.values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0]], "reward Fixed returned a list, need a numpy array"),
        (np.ones(2, np.float32), "returned shape \\(2,\\) for 1 images of 2 captions"),
        (np.ones((1, 2)), "returned float64, need float32"),
        (np.array([[0, np.nan]], np.float32), "gave nan to caption 1 of image 7 \\('b'\\)"),
    ],
)
def test_the_checker_names_the_reward(values, message):
    with pytest.raises(UserError, match=message):
        checked(Fixed(values), np.array([7]), [["a", "b"]], np.ones((1, 2), bool))
    good = np.zeros((1, 2), np.float32)
    assert checked(Fixed(good), np.array([7]), [["a", "b"]], np.ones((1, 2), bool)) is good
