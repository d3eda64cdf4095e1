"""BLEU, ROUGE-L and the whole corpus score against pycocoevalcap."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from har_jax.errors import UserError
from har_jax.metrics import official
from har_jax.metrics.corpus import predictions_from_results, score_captions
from har_jax.metrics.rouge_l import corpus_rouge
from tests.bleu import corpus_bleu

WORD = st.sampled_from(["a", "b", "c", "dog", "on", "the"])
CAPTION = st.one_of(st.just([]), st.lists(WORD, max_size=12), WORD.map(lambda w: [w] * 200))
CORPUS = st.lists(
    st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=5
)


def texts(references, predictions):
    return (
        {i: [" ".join(c) for c in captions] for i, captions in references.items()},
        {i: [" ".join(words)] for i, words in predictions.items()},
    )


@given(CORPUS)
def test_bleu_and_rouge_on_drawn_captions(corpus):
    references = {i: captions for i, (_, captions) in enumerate(corpus)}
    predictions = {i: candidate for i, (candidate, _) in enumerate(corpus)}
    truth, results = texts(references, predictions)

    bleu, per_image = corpus_bleu(references, predictions)
    expected, expected_per_image = Bleu(4).compute_score(truth, results, verbose=0)
    np.testing.assert_allclose(bleu, expected, atol=1e-9)
    np.testing.assert_allclose(np.array(list(per_image.values())).T, expected_per_image, atol=1e-9)

    rouge, rouge_per_image = corpus_rouge(references, predictions)
    expected, expected_per_image = Rouge().compute_score(truth, results)
    assert rouge == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(list(rouge_per_image.values()), expected_per_image, atol=1e-9)


@given(st.lists(WORD, max_size=20), st.lists(WORD, max_size=20))
def test_longest_common_subsequence(a, b):
    """Against one reference, ROUGE-L's precision and recall are the length over each one's."""
    rouge, _ = corpus_rouge({1: [b or [""]]}, {1: a or [""]})
    common = my_lcs(a or [""], b or [""])
    precision, recall = common / max(1, len(a)), common / max(1, len(b))
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0
    assert rouge == pytest.approx(expected)


def test_five_thousand_real_images(real_data):
    """From raw text to the three official numbers, with the official tokenizer (Java)."""
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    raw = json.loads((real_data / "coco_val2017_captions.json").read_text())["annotations"]
    captions: dict[int, list[str]] = {}
    for a in raw:
        captions.setdefault(a["image_id"], []).append(a["caption"])
    references = {i: c[1:] for i, c in captions.items()}
    predictions = {i: c[0] for i, c in captions.items()}
    got = score_captions(references, predictions)

    tokenize = PTBTokenizer().tokenize
    truth = tokenize({i: [{"caption": c} for c in group] for i, group in references.items()})
    results = tokenize({i: [{"caption": c}] for i, c in predictions.items()})
    assert got.n_images == len(truth) == 5000

    def check(key, value, values):
        assert got.corpus[key] == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose([got.per_image[i][key] for i in truth], values, atol=1e-9)

    check("CIDEr", *Cider().compute_score(truth, results))
    check("ROUGE_L", *Rouge().compute_score(truth, results))
    bleu, bleu_per_image = Bleu(4).compute_score(truth, results, verbose=0)
    for k in range(4):
        check(f"Bleu_{k + 1}", bleu[k], bleu_per_image[k])


REFERENCES = {1: ["A dog runs.", "The dog is running"], 2: ["Two cats sleep"]}


def test_keys_and_signature():
    scores = score_captions(REFERENCES, {2: "two cats", 1: "a dog runs"})
    assert list(scores.corpus) == [
        *("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "METEOR", "SPICE")
    ]
    assert scores.corpus["METEOR"] is None
    assert scores.skipped["METEOR"] == "not asked for"
    assert set(scores.per_image[1]) == {"CIDEr", "ROUGE_L", *(f"Bleu_{k}" for k in range(1, 5))}
    assert "CIDEr-D[n4,s6.0,df=references,N=2]" in scores.signature
    only = score_captions(REFERENCES, {1: "a", 2: "b"}, metrics=["ROUGE_L"])
    assert only.corpus["CIDEr"] is None and only.corpus["Bleu_4"] is None


def test_meteor_and_spice_say_why_they_did_not_run(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = score_captions(REFERENCES, {1: "a", 2: "b"}, metrics=["METEOR", "SPICE"])
    assert scores.skipped["METEOR"] == "Java is not installed"
    assert scores.skipped["SPICE"] == "Java is not installed"


@pytest.fixture(scope="module")
def small():
    """Captions with what tokenizers differ about."""
    references = {
        1: ["A dog's bowl (red), 1 1/2 feet wide.", "The dog cannot eat...", "a bowl, a dog"],
        2: ["Two cats sleep", 'Cats "asleep" on St. Mary\'s bed'],
        3: ["A man in the U.S.", "a man"],
    }
    return references, {3: "", 1: "a dog's 1 1/2 bowls", 2: "cats sleep on the bed."}


def test_official_metrics_are_run_by_pycocoevalcap_and_equal_ours(small):
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    ours, theirs = (
        score_captions(*small),
        score_captions(*small, metrics=["official", "CIDEr", "Bleu", "ROUGE_L"]),
    )
    assert theirs.signature == ours.signature + "+by=pycocoevalcap[official]"
    for key, value in ours.corpus.items():
        assert theirs.corpus[key] == (None if value is None else pytest.approx(value, abs=1e-9))
    for image_id, values in ours.per_image.items():
        assert theirs.per_image[image_id] == pytest.approx(values, abs=1e-9)
    assert theirs.words == ours.words and theirs.reference_words == ours.reference_words


def test_official_metrics_call_pycocoevalcaps_scorers(small, monkeypatch):
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    monkeypatch.setattr(Cider, "compute_score", lambda self, truth, results: (7.0, [7.0] * 3))
    assert score_captions(*small, metrics=["official", "CIDEr"]).corpus["CIDEr"] == 7.0
    assert score_captions(*small, metrics=["CIDEr"]).corpus["CIDEr"] < 7.0


def test_official_metrics_without_java_are_refused(small, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--metrics=official.*Java is not installed.*same values"):
        score_captions(*small, metrics=["official"])


BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


def test_line_breaks_are_spaces_to_java_and_to_us():
    """Java reads captions line by line: a break inside one moved all later ones by an image."""
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    texts = [f"a dog number {i}{mark}runs on grass" for i, mark in enumerate(BREAKS)]
    references = {i: [text, f"dog {i} on grass"] for i, text in enumerate(texts)}
    predictions = {i: f"a dog number {i}{mark}{mark}runs" for i, mark in enumerate(BREAKS)}
    theirs = score_captions(references, predictions, metrics=["official", "CIDEr", "ROUGE_L"])
    ours = score_captions(references, predictions, metrics=["CIDEr", "ROUGE_L"])
    assert theirs.words == ours.words and theirs.reference_words == ours.reference_words
    assert theirs.words[3] == ["a", "dog", "number", "3", "runs"]
    for key in ("CIDEr", "ROUGE_L"):
        assert theirs.corpus[key] == pytest.approx(ours.corpus[key], abs=1e-9)


@pytest.mark.parametrize("given", ["a dog", "a dog\n\na cat"])
def test_another_number_of_lines_from_java_is_refused(monkeypatch, given):
    monkeypatch.setattr(official.shutil, "which", lambda name: name)
    ran = subprocess.CompletedProcess([], 0, given.encode(), b"")
    monkeypatch.setattr(official.subprocess, "run", lambda *_, **__: ran)
    with pytest.raises(UserError, match=r"its tokenizer gave [13] lines for 2 captions"):
        score_captions({1: ["a dog"], 2: ["a cat"]}, {1: "a", 2: "b"}, metrics=["official"])


@pytest.mark.parametrize("fails", ["EVAL", "SCORE"])
def test_a_meteor_that_fails_is_told_and_ends(monkeypatch, fails):
    """Its destructor waits for a lock that a failing call holds."""
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    from pycocoevalcap.meteor.meteor import Meteor

    def dies(self, *_):
        self.meteor_p.kill()
        self.meteor_p.wait()
        if fails == "SCORE":
            raise BrokenPipeError
        return ""

    monkeypatch.setattr(Meteor, "_stat", dies)
    scores = score_captions({1: ["a dog"]}, {1: "a dog"}, metrics=["METEOR"])
    assert scores.corpus["METEOR"] is None and "METEOR failed" in scores.skipped["METEOR"]


def test_no_white_space_inside_words():
    """The tokenizer joins "1 1/2" with a non-breaking space, which the metrics split again."""
    references = {1: ["1 1/2 pizzas on it", "a pizza"], 2: ["two cats"]}
    scores = score_captions(references, {1: "1 1/2 pizzas", 2: "two cats"})
    truth = {1: ["1\xa01/2 pizzas on it", "a pizza"], 2: ["two cats"]}
    results = {1: ["1\xa01/2 pizzas"], 2: ["two cats"]}
    assert scores.corpus["CIDEr"] == pytest.approx(Cider().compute_score(truth, results)[0])
    assert scores.corpus["ROUGE_L"] == pytest.approx(Rouge().compute_score(truth, results)[0])
    bleu = Bleu(4).compute_score(truth, results, verbose=0)[0]
    assert scores.corpus["Bleu_2"] == pytest.approx(bleu[1])


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (REFERENCES, {1: "a", 2: "b", 5: "c"}, "image 5 has a prediction but no references"),
        (REFERENCES, {1: "a"}, "image 2 has references but no prediction"),
        ({1: []}, {1: "a"}, "image 1 has references \\[\\]"),
        ({1: "a dog"}, {1: "a"}, "give a list"),
        ({}, {}, "no references"),
    ],
)
def test_bad_input(references, predictions, message):
    with pytest.raises(UserError, match=message):
        score_captions(references, predictions)


def test_unknown_metric():
    with pytest.raises(UserError, match="did you mean 'CIDEr'"):
        score_captions(REFERENCES, {1: "a", 2: "b"}, metrics=["CIDER"])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "two predictions"),
        ([{"image_id": 1}], "entry 0 of the results"),
        (["text"], "entry 0 of the results"),
        ([{"image_id": 1.5, "caption": "a"}], "1.5, which is no whole number"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": "01", "caption": "b"}], "two predictions"),
        ([{"image_id": 1, "caption": None}], "not a text"),
    ],
)
def test_bad_results(results, message):
    with pytest.raises(UserError, match=message):
        predictions_from_results(results)


def test_results():
    assert predictions_from_results([{"image_id": 3, "caption": "a", "more": 1}]) == {3: "a"}
    ids = ["12", 13.0, "img_0", 2**40]
    results = [{"image_id": written, "caption": "a"} for written in ids]
    assert list(predictions_from_results(results)) == [12, 13, "img_0", 2**40]
