"""`har_jax.metrics`: metrics of plain texts, as `evaluate` and pycocoevalcap have them."""

import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from har_jax import metrics
from har_jax.errors import UserError
from har_jax.evaluation.from_files import evaluate_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORD = st.sampled_from(["a", "dog", "runs", "on", "the", "grass", "red"])
TEXT = st.lists(WORD, min_size=1, max_size=8).map(" ".join)
CORPUS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=2, max_size=5)


@settings(max_examples=25)
@given(CORPUS)
def test_equal_pycocoevalcap(corpus):
    predictions, references = map(list, zip(*corpus, strict=True))
    truth, results = dict(enumerate(references)), {i: [t] for i, t in enumerate(predictions)}
    close = dict(abs=1e-9)
    cider, _ = Cider().compute_score(truth, results)
    assert metrics.cider(predictions, references) == pytest.approx(cider, **close)
    rouge, _ = Rouge().compute_score(truth, results)
    assert metrics.rouge(predictions, references) == pytest.approx(rouge, **close)
    bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
    for n in range(1, 5):
        assert metrics.bleu(predictions, references, n=n) == pytest.approx(bleu[n - 1], **close)


def test_are_what_evaluate_says_to_the_last_digit(workspace, tmp_path):
    """Lists and mappings, with ids as numbers and as texts, and in another order."""
    truth = workspace / "data/captions.test.json"
    captions = {}
    for row in json.loads(truth.read_text())["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    written = {i: group[-1] for i, group in captions.items()}
    results = [{"image_id": i, "caption": text} for i, text in written.items()]
    (tmp_path / "results.json").write_text(json.dumps(results))
    names = ("CIDEr", "Bleu", "ROUGE_L")
    said = evaluate_files(
        tmp_path / "results.json", truth, tmp_path / "out", metrics=names, words="ptb"
    ).scores
    found = metrics.score_captions(written, captions, metrics=names)
    assert found.corpus == {key: said[key] for key in found.corpus} and len(found.corpus) == 6
    assert said["signature"] == found.signature
    rows = json.loads((tmp_path / "out/per_image.json").read_text())
    for row in rows:
        assert found.per_image[row["image_id"]]["CIDEr"] == row["CIDEr"]
    backwards = {str(i): captions[i] for i in reversed(captions)}
    assert metrics.score_captions(written, backwards, metrics=names).corpus == found.corpus
    lists = metrics.score_captions(list(written.values()), list(captions.values()), metrics=names)
    assert lists.corpus == found.corpus and list(lists.per_image) == list(range(len(written)))
    assert metrics.cider(written, captions) == said["CIDEr"] == found["CIDEr"]


def test_words_are_chosen_by_name():
    one = ["A dog, runs!"], [["a dog runs"]]
    assert metrics.bleu(*one, n=3) == pytest.approx(1)
    assert metrics.bleu(*one, n=1, words="whitespace") < 0.5


@pytest.mark.parametrize(
    ("predictions", "references", "told"),
    [
        ("a dog", [["a dog"]], "the predictions are 'a dog'; give a list"),
        (["a dog"], "a dog", "the references are 'a dog'; give a list"),
        (["a dog"], ["a dog"], "each of whose letters would be a reference"),
        ([["a", "dog"]], [["a dog"]], "predictions before references"),
        (["a dog"], [[]], "give a list of at least one text"),
        (["a dog"], [["a dog"], ["a cat"]], "1 predictions and 2 references"),
        ({1: "a dog"}, [["a dog"]], "give lists of one order"),
        ({1: "a dog"}, {2: ["a dog"]}, "such as 1, have no references"),
        ({1: "a dog"}, {1: ["a"], 2: ["b"]}, "such as 2, have no predictions"),
        ({1: "a", "1": "b"}, {1: ["a"]}, "twice"),
        ([], [], "are empty"),
        ([None], [["a"]], "None, not a text"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_does_not_belong_together_is_told_in_a_line(predictions, references, told):
    for metric in (metrics.cider, metrics.bleu, metrics.rouge, metrics.score_captions):
        with pytest.raises(UserError, match=told):
            metric(predictions, references)


def test_other_mistakes():
    with pytest.raises(UserError, match="unknown metric 'Cider'; choose from CIDEr"):
        metrics.score_captions(["a"], [["a"]], metrics=["Cider"])
    with pytest.raises(UserError, match="give a list, \\['CIDEr'\\]"):
        metrics.score_captions(["a"], [["a"]], metrics="CIDEr")
    with pytest.raises(UserError, match="n is 1, 2, 3 or 4"):
        metrics.bleu(["a"], [["a"]], n=5)
    with pytest.raises(AttributeError, match="no attribute 'meteor'"):
        _ = metrics.meteor


def test_no_jax_and_no_compiler_are_imported():
    code = """
import sys
import har_jax.metrics
from har_jax.rewards import trl
har_jax.metrics.cider(["a b"], [["a b"]])
har_jax.metrics.chair(["a"], [[]])
trl("cider_d", {1: ["a"]})(completions=["a"], image_id=[1])
print([name for name in ("jax", "flax", "torch", "trl") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr[-500:]
