"""The words that a dataset is prepared with: recorded, taken by all that reads it, never mixed."""

import json
import sys

import pytest
from PIL import Image

from har_jax.data.dataset import (
    captions_path,
    document_frequency_path,
    open_split,
    read_card,
    words_of,
)
from har_jax.data.subset import take
from har_jax.errors import UserError
from har_jax.evaluate import main as evaluate
from har_jax.evaluation.from_files import evaluate_files
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.prepare import main as prepare
from har_jax.scorers.split_reward import split_reward
from har_jax.text.words import PTB, WHITESPACE
from tests.data.test_dataset import forget_sums

CAPTIONS = {
    "1.png": ["赤い ボール が ある", "ボール が 砂 の 上 に ある"],
    "2.png": ["青い 箱 が ある", "箱 は 青い"],
    "3.png": ["星 が 光る", "緑 の 星"],
}
RESULTS = [{"image_id": name, "caption": texts[0]} for name, texts in CAPTIONS.items()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(CAPTIONS):
        Image.new("RGB", (20, 20), (80 * i, 10, 10)).save(root / name)
    rows = [{"image": name, "captions": texts} for name, texts in CAPTIONS.items()]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "results.json").write_text(json.dumps(RESULTS))
    return root


def made(pictures, out, *flags):
    captions = f"--captions={pictures / 'captions.jsonl'}"
    return prepare(
        ["folder", f"--images={pictures}", captions, f"--out={out}", "--split=test", *flags]
    )


def scores_of(pictures, references, out, **how):
    results = pictures / "results.json"
    return evaluate_files(results, references, out, metrics=("CIDEr", "Bleu", "ROUGE_L"), **how)


def test_they_are_recorded_and_taken(pictures, tmp_path, capsys):
    data = tmp_path / "data"
    assert made(pictures, data, "--words=whitespace") == 0
    assert "vocabulary of 14 words" in capsys.readouterr().out
    assert read_card(data)["words"] == "whitespace" and words_of(data) is WHITESPACE
    df = DocumentFrequency.load(document_frequency_path(data, "test"))
    assert df.words_by == "whitespace" and df.get(("ボール", "が")) == 1
    # Evaluation takes them from the dataset, by its directory and by its captions.
    whole = scores_of(pictures, data, tmp_path / "a").scores
    by_file = scores_of(pictures, captions_path(data, "test"), tmp_path / "b").scores
    assert whole["signature"] == by_file["signature"] and "words=whitespace" in whole["signature"]
    assert whole["CIDEr"] == by_file["CIDEr"] > 1 and whole["Bleu_4"] > 0.5
    assert whole["health"]["mean_length"] == pytest.approx(11 / 3)
    alone = tmp_path / "references.json"
    alone.write_bytes(captions_path(data, "test").read_bytes())
    assert "words=ptb" in scores_of(pictures, alone, tmp_path / "c").scores["signature"]
    asked = scores_of(pictures, alone, tmp_path / "d", words="whitespace").scores
    assert asked["CIDEr"] == whole["CIDEr"]
    # Other words than the dataset's are no comparable score.
    with pytest.raises(
        UserError, match="prepared with --words=whitespace, and words=ptb are asked"
    ):
        scores_of(pictures, data, tmp_path / "e", words="ptb")
    with pytest.raises(UserError, match=r"has no split 'tset' .did you mean 'test'"):
        scores_of(pictures, data, tmp_path / "e", split="tset")


def test_the_command_line(pictures, tmp_path, capsys):
    assert made(pictures, tmp_path / "data", "--words=whitspace") == 2
    assert "did you mean 'whitespace'?" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert made(pictures, tmp_path / "data") == 0
    argv = [f"--predictions={pictures / 'results.json'}", f"--references={tmp_path / 'data'}"]
    argv += [f"--out={tmp_path / 'out'}", "--metrics=CIDEr"]
    assert evaluate([*argv, "--words=whitespace"]) == 2
    assert "prepared with --words=ptb, and words=whitespace" in capsys.readouterr().err
    assert evaluate(argv) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["signature"].endswith("words=ptb")


def test_a_dataset_of_ptb_says_nothing_of_words(pictures, tmp_path):
    """Its files are what they were before words had names."""
    assert (
        made(pictures, tmp_path / "plain") == 0 == made(pictures, tmp_path / "named", "--words=ptb")
    )
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "named" / path.name).read_bytes(), path.name
    card = read_card(tmp_path / "plain")
    assert "words" not in card and words_of(tmp_path / "plain") is PTB
    assert list(card)[:4] == ["name", "ids", "description", "made_by"]


def test_a_function_is_run_only_where_it_is_asked_for(pictures, tmp_path, monkeypatch):
    lines = [f"open({str(tmp_path / 'ran')!r}, 'w').close()", "cut = lambda text: text.split()"]
    (tmp_path / "words_of_mine.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    name = "words_of_mine:cut"
    data = tmp_path / "data"
    assert made(pictures, data, f"--words={name}") == 0
    assert read_card(data)["words"] == name
    del sys.modules["words_of_mine"]
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match=f"words of a function, {name}, which is run only where"):
        scores_of(pictures, data, tmp_path / "out")
    with pytest.raises(UserError, match=f"--config.data.words={name} in training, --words={name}"):
        words_of(data)
    assert "words_of_mine" not in sys.modules and not (tmp_path / "ran").exists()
    scores = scores_of(pictures, data, tmp_path / "out", words=name).scores
    assert f"+words={name}[" in scores["signature"] and (tmp_path / "ran").exists()


def test_cards_that_name_what_is_none(pictures, tmp_path):
    data = tmp_path / "data"
    assert made(pictures, data) == 0
    card = read_card(data)
    for words, message in (("icv", "unknown words 'icv'"), (3, "words: needs str, got int")):
        (data / "dataset.json").write_text(json.dumps({**card, "words": words}))
        forget_sums(data)
        with pytest.raises(UserError, match=message):
            words_of(data)


def test_training_counts_them(pictures, tmp_path):
    """The reward's document frequencies are those of the dataset's words, of a part of it too; a
    table of others that lies there is refused."""
    data = tmp_path / "data"
    assert made(pictures, data, "--words=whitespace") == 0
    split = open_split(data, "test")
    whole = split_reward("cider_d", split, words_of(data))
    part = split_reward("cider_d", take(split, shots=2), words_of(data))
    for reward, n in ((whole, 3), (part, 2)):
        assert f",N={n}," in reward.signature
        assert reward.signature.endswith("+words=whitespace") and "ptb" not in reward.signature
    assert made(pictures, tmp_path / "plain") == 0
    table = document_frequency_path(tmp_path / "plain", "test").read_bytes()
    document_frequency_path(data, "test").write_bytes(table)
    with pytest.raises(UserError, match="count the words of ptb, and the reward those of whitesp"):
        split_reward("cider_d", split, words_of(data))
