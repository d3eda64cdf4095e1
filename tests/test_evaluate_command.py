"""`python -m har_jax.evaluate` on files: its results."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from har_jax.evaluate import main
from har_jax.evaluation.score import KEYS
from tests.conftest import ROOT
from tests.evaluate_files import CAPTIONS, coco, evaluates, karpathy, results


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java: METEOR would take seconds
    return evaluates(tmp_path, capsys)


def test_writes_what_the_contract_says(run):
    code, printed, err, out = run(results(), coco())
    assert code == 0, err
    assert json.loads((out / "predictions.json").read_text()) == results()
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores)[: len(KEYS) + 3] == [*KEYS, "n_images", "signature", "skipped"]
    assert scores["n_images"] == 4 and 0 < scores["CIDEr"] <= 10 and 0 < scores["Bleu_1"] <= 1
    for name in ("METEOR", "SPICE", "CLIPScore", "RefCLIPScore"):
        assert scores[name] is None and scores["skipped"][name]
    assert scores["health"]["mean_length"] > 0
    rows = json.loads((out / "per_image.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["references"] == CAPTIONS[1] and rows[0]["filename"] == "1.jpg"
    assert sum(row["CIDEr"] for row in rows) / 4 == pytest.approx(scores["CIDEr"])
    assert "CIDEr" in printed and "not computed" in printed
    assert not [p for p in out.iterdir() if "partial" in p.name]


NAMED = {f"{i}.jpg": CAPTIONS[i][1] for i in CAPTIONS}
FORMS = {
    "rows": json.dumps([{"image": f"some/{n}", "caption": t} for n, t in NAMED.items()]),
    "lines": "\n".join(json.dumps({"image": n, "caption": t}) for n, t in NAMED.items()),
    # The name comes first: ids may be of somebody's own.
    "foreign ids": json.dumps(
        [{"image_id": 70 + k, "image": n, "caption": t} for k, (n, t) in enumerate(NAMED.items())]
    ),
    "by name": json.dumps(NAMED),
    "by name, over lines": json.dumps({n: [t] for n, t in NAMED.items()}, indent=1),
    "by id": json.dumps({str(i): CAPTIONS[i][1] for i in CAPTIONS}),
    "table": "image,caption\n" + "\n".join(f'{n},"{t}"' for n, t in NAMED.items()),
    "table of ids": "caption;image_id\n" + "\n".join(f"{CAPTIONS[i][1]};{i}" for i in CAPTIONS),
    "bare table": "\n".join(f"{n}\t{t}" for n, t in NAMED.items()),
}


@pytest.mark.parametrize("form", FORMS)
def test_predictions_of_any_form_score_alike(run, form):
    _, _, _, out = run(results(), coco())
    expected = json.loads((out / "scores.json").read_text())
    code, _, err, out = run(FORMS[form], coco())
    assert code == 0, err
    found = json.loads((out / "scores.json").read_text())
    assert [found[key] for key in KEYS] == [expected[key] for key in KEYS]
    code, _, err, _ = run(FORMS[form], coco(), f"--against={out}")
    assert code == 0, err


ROWS = [(f"{i}.jpg", text) for i, texts in CAPTIONS.items() for text in texts]
REFERENCES = {
    "table": "image,caption\n" + "\n".join(f'{n},"{t}"' for n, t in ROWS),
    "lines": "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in ROWS),
    "list": json.dumps([{"image": f"{i}.jpg", "captions": CAPTIONS[i]} for i in CAPTIONS]),
    "table of ids": "image_id,caption\n" + "\n".join(f'{n[0]},"{t}"' for n, t in ROWS),
    "lines of ids": "\n".join(
        json.dumps({"image_id": i, "captions": texts}) for i, texts in CAPTIONS.items()
    ),
    "by name": json.dumps({f"{i}.jpg": CAPTIONS[i] for i in CAPTIONS}),
    "by id, over lines": json.dumps(CAPTIONS, indent=1),
    "splits": "split,image,caption\ntrain,9.jpg,not this\n"
    + "\n".join(f'test,{n},"{t}"' for n, t in ROWS),
}


@pytest.mark.parametrize("form", REFERENCES)
def test_references_in_rows(run, form):
    _, _, _, out = run(results(), coco())
    expected = json.loads((out / "scores.json").read_text())
    code, _, err, out = run(FORMS["lines"], REFERENCES[form])
    assert code == 0, err
    found = json.loads((out / "scores.json").read_text())
    assert [found[key] for key in KEYS] == [expected[key] for key in KEYS]


@pytest.mark.parametrize(
    ("predictions", "references", "told"),
    [
        ("image,caption\n1.jpg,a,b", coco(), r"line 2 has 3 columns"),
        ("picture,caption\n1.jpg,a", coco(), "no header that names an image"),
        ("image,caption\n1.jpg,a\n1.jpg,b", coco(), "'1.jpg' has two predictions"),
        ({"1.jpg": ["a", "b"]}, coco(), "holds a dict, not a list"),
        (results(), "image,caption\n1.jpg,a,b", "1 malformed rows|not one row"),
        (results(), "image,caption\n", "holds no captions"),
        (results(), "picture,caption\n1.jpg,a", "Begin it with image,caption$"),
        ('{"1.jpg": "a",\n "1.jpg": "b"}', coco(), "the key '1.jpg' occurs twice"),
        ('{"1.jpg": "a", "1.jpg": "b"}', coco(), "the key '1.jpg' occurs twice"),
        (results(), '{"1": ["a"], "1": ["b"]}', "the key '1' occurs twice"),
        (results(), {"1": 3}, "'1' has 3 where its captions should be"),
        (results(), {"1": [3]}, "has the caption 3, which is no text"),
        (results(), {"1": ["a"], "01": ["b"]}, "has 1 twice"),
        (results(), "", "CSV.*DIR:SPLIT"),
        ("", coco(), "CSV"),
        ([{"image_id": {"a": 1}, "text": "x"}], coco(), "the id is no number and no text but"),
    ],
)
def test_bad_rows_give_one_line(run, predictions, references, told):
    code, _, err, out = run(predictions, references)
    assert code == 2 and err.count("\n") == 1 and re.search(told, err), err
    assert not out.exists()


def test_meteor_is_given_up_in_time(monkeypatch):
    from har_jax.metrics import official

    if shutil.which("java") is None:
        pytest.skip("java is absent")
    texts = {i: [t.split() for t in CAPTIONS[i]] for i in CAPTIONS}
    with pytest.raises(official.Unavailable, match=r"METEOR took more than 0\.01 s"):
        official.meteor(texts, {i: texts[i][0] for i in texts}, seconds=0.01)


def test_equals_pycocoevalcap(run):
    from pycocoevalcap.cider.cider import Cider

    from har_jax.text import ptb

    _, _, _, out = run(results(), coco())
    truth = {i: [" ".join(ptb.words(t)) for t in texts] for i, texts in CAPTIONS.items()}
    written = {r["image_id"]: [" ".join(ptb.words(r["caption"]))] for r in results()}
    expected, _ = Cider().compute_score(truth, written)
    assert json.loads((out / "scores.json").read_text())["CIDEr"] == pytest.approx(expected, 1e-9)


def test_official_metrics(run, monkeypatch):
    code, _, err, _ = run(results(), coco(), "--metrics=official")
    assert code == 2 and "--metrics=official runs pycocoevalcap: Java is not installed" in err
    monkeypatch.undo()
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    code, _, err, out = run(results(), coco(), "--metrics=official,CIDEr,ROUGE_L")
    assert code == 0, err
    theirs = json.loads((out / "scores.json").read_text())
    assert theirs["signature"].endswith("by=pycocoevalcap[official]")
    _, _, _, out = run(results(), coco(), "--metrics=CIDEr,ROUGE_L")
    ours = json.loads((out / "scores.json").read_text())
    assert [theirs[key] for key in KEYS] == [
        None if ours[key] is None else pytest.approx(ours[key], abs=1e-9) for key in KEYS
    ]


def test_gendered_words_are_counted(run):
    """One caption contradicts its references, the others have no gendered word."""
    written = results()
    written[0]["caption"] = "a woman with a dog"
    references = coco()
    for annotation in references["annotations"]:
        if annotation["image_id"] == 1:
            annotation["caption"] = "a man with a dog"
    _, printed, _, out = run(written, references)
    bias = json.loads((out / "scores.json").read_text())["bias"]
    assert bias["lists"] == "lic" and bias["unsupported_rate"] == 0.25 == bias["bias"]
    assert bias["neutral_rate"] == 0.75
    assert bias["recall_male"] == 0.0 and bias["error_male"] == 1.0
    assert bias["recall_female"] is None
    assert "neutral to gender" in printed


def test_scoring_files_starts_no_heavy_library(tmp_path):
    """Half of the time of scoring a few thousand captions went into imports."""
    (tmp_path / "predictions.json").write_text(json.dumps(results()))
    (tmp_path / "references.json").write_text(json.dumps(coco()))
    heavy = "jax tqdm numba scipy jaxtyping transformers PIL tensorflow_datasets"
    code = f"""
import sys
from har_jax.evaluate import main
assert main(["--predictions=predictions.json", "--references=references.json", "--out=out",
             "--metrics=CIDEr,Bleu,ROUGE_L"]) == 0
assert not sys.modules.keys() & set({heavy.split()!r}), sys.modules.keys()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize(("split", "ids"), [("test", (1, 2)), ("train", (3, 4))])
def test_karpathy_split(run, split, ids):
    code, _, err, out = run(results(ids), karpathy(), f"--split={split}")
    assert code == 0, err
    scores = json.loads((out / "scores.json").read_text())
    assert scores["n_images"] == 2 and not scores["warnings"]


def test_shuffle_control(run):
    code, printed, _, out = run(results(), coco(), "--control=shuffle")
    control = json.loads((out / "scores.json").read_text())["control"]
    assert code == 0 and control["kind"] == "shuffle"
    assert control["ratio"] == control["CIDEr_shuffled"] / control["CIDEr"] < 0.3
    assert "with images shuffled" in printed


def test_intervals_are_stored_printed_and_follow_the_seed(run):
    _, printed, _, out = run(results(), coco())
    scores = json.loads((out / "scores.json").read_text())
    found = scores["confidence"]
    assert found["resamples"] == 1000 and "held fixed" in found["method"]
    for name in ("CIDEr", "Bleu_1", "ROUGE_L"):
        low, high = found["intervals"][name]
        assert low <= scores[name] <= high
    assert "95 % interval" in printed and "held fixed" in printed
    before = (out / "scores.json").read_text()
    run(results(), coco())
    assert (out / "scores.json").read_text() == before
    run(results(), coco(), "--seed=1")
    assert json.loads((out / "scores.json").read_text())["confidence"] != found


def test_one_image_has_no_interval(run):
    code, _, _, out = run(results((1,)), coco())
    assert code == 0 and json.loads((out / "scores.json").read_text())["confidence"] is None


def test_against_another_system(run, tmp_path):
    other = [{"image_id": i, "caption": "a ring"} for i in (*CAPTIONS, 9)]
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, printed, err, out = run(results(), coco(), f"--against={tmp_path / 'other.json'}")
    assert code == 0, err
    found = json.loads((out / "scores.json").read_text())["against"]
    cider = found["metrics"]["CIDEr"]
    assert found["n_images"] == 4 and cider["difference"] == cider["value"] - cider["other"] > 0
    assert cider["interval"][0] <= cider["difference"] <= cider["interval"][1]
    assert "paired bootstrap" in printed and "difference" in printed
    # Its directory does as well, and a system does not differ from itself.
    out.rename(tmp_path / "first")
    code, _, err, out = run(results(), coco(), f"--against={tmp_path / 'first'}")
    assert code == 0, err
    for row in json.loads((out / "scores.json").read_text())["against"]["metrics"].values():
        assert row["difference"] == 0 and row["interval"] == [0, 0] and row["p"] == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results((1, 2)), "no caption of 2 of the 4 images, such as image 3"),
        ({}, "not a list"),
        (None, "there is no file"),
        ("dir", "no predictions.json"),
    ],
)
def test_a_system_that_cannot_be_compared(run, tmp_path, other, message):
    path = tmp_path / "other.json"
    if other == "dir":
        path.mkdir()
    elif other is not None:
        path.write_text(json.dumps(other))
    code, _, err, out = run(results(), coco(), f"--against={path}")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not out.exists()


def test_chosen_metrics(run):
    code, printed, _, out = run(results(), coco(), "--metrics=CIDEr,ROUGE_L")
    scores = json.loads((out / "scores.json").read_text())
    assert code == 0 and scores["Bleu_4"] is None and scores["CIDEr"] is not None
    assert scores["skipped"]["Bleu"] == "not asked for" and "METEOR" in printed
    assert "Bleu_4" not in scores["confidence"]["intervals"]
    code, _, err, _ = run(results(), coco(), "--metrics=CIDER")
    assert code == 2 and "did you mean 'CIDEr'" in err


def test_fewer_predictions_than_references_are_told(run):
    code, printed, _, out = run(results((1, 2, 3)), coco())
    scores = json.loads((out / "scores.json").read_text())
    assert code == 0 and scores["n_images"] == 3
    assert "only 3 of the 4 images" in scores["warnings"][0]
    assert "only 3 of the 4 images" in printed


def test_clip_without_images_is_skipped_with_its_reason(run):
    code, _, _, out = run(results(), coco(), "--clip=nowhere")
    scores = json.loads((out / "scores.json").read_text())
    assert code == 0 and "--images" in scores["skipped"]["CLIPScore"]


def test_older_scores_do_not_survive_other_predictions(run):
    run(results(), coco(), "--control=shuffle")
    code, _, _, out = run(results((1, 2)), coco())
    scores = json.loads((out / "scores.json").read_text())
    assert code == 0 and "control" not in scores and scores["n_images"] == 2


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0 and "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["{}", "{}.png", "photos/{:012}.jpg", "COCO_val2014_{:012}.jpg"])
def test_references_of_rows_and_ids_that_are_numbers(tmp_path, capsys, name):
    """COCO results beside a table whose files are named by the same numbers."""
    predictions, table = tmp_path / "p.json", tmp_path / "refs.csv"
    ids = (300001, 300002)
    predictions.write_text(json.dumps([{"image_id": i, "caption": f"a dog {i}"} for i in ids]))
    rows = "".join(f"{name.format(i)},a dog {i} runs\n" for i in ids)
    table.write_text(f"image,caption\n{rows}")
    argv = [f"--predictions={predictions}", f"--references={table}", f"--out={tmp_path / 'out'}"]
    assert main(argv) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["n_images"] == 2
