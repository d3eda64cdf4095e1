"""`python -m har_jax.evaluate` on files: one clear line for each bad input."""

import re

import pytest

from har_jax.evaluate import main
from tests.evaluate_files import coco, evaluates, karpathy, results


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java: METEOR would take seconds
    return evaluates(tmp_path, capsys)


BAD = {
    "not JSON": ("[{", coco(), r"not valid JSON \(line 1"),
    "references not JSON": (results(), "{", "not valid JSON"),
    "no file": (None, coco(), "no file .*results.json"),
    "no list": ({"image_id": 1}, coco(), "holds a dict, not a list"),
    "empty": ([], coco(), "holds no predictions"),
    "no caption": ([{"image_id": 1}], coco(), "entry 0 .*caption"),
    "number for a caption": ([{"image_id": 1, "caption": 3}], coco(), "image 1 is 3, not a text"),
    "fraction for an id": ([{"image_id": 1.5, "caption": "x"}], coco(), "no whole number"),
    "nothing for an id": ([{"image_id": None, "caption": "x"}], coco(), "no number and no text"),
    "an object over lines": ('{\n"image_id": 1\n}', coco(), "holds a dict, not a list"),
    "cut lines": ('{"image_id": 1, "caption": "x"}\n{"image', coco(), "line 2 is not valid JSON"),
    "duplicate": (results((1, 1)), coco(), "image 1 has two predictions"),
    "unknown image": (
        [*results(), {"image_id": 99, "caption": "x"}],
        coco(),
        "1 of 5 predictions .* image 99",
    ),
    "no images": (results(), {"annotations": []}, "no list `images`"),
    "neither format": (results(), {"images": [{"id": 1}]}, "neither `annotations`"),
    "no captions": (results(), {"images": [], "annotations": []}, "no captions"),
    "annotation without id": (
        results(),
        {"images": [], "annotations": [{"caption": "x"}]},
        "annotation 0 has no 'image_id'",
    ),
    "caption is null": (
        results(),
        {"images": [], "annotations": [{"image_id": 1, "caption": None}]},
        "caption None, which is no text",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line_and_exit_2(run, name):
    predictions, references, message = BAD[name]
    code, printed, err, out = run(predictions, references)
    assert code == 2 and not printed
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(message, err), err
    assert not out.exists(), "nothing is left behind"


def test_an_unknown_split_is_suggested(run):
    code, _, err, _ = run(results(), karpathy(), "--split=tset")
    assert code == 2 and "did you mean 'test'" in err and "restval, test, train" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=o"], "--checkpoint=RUN.*--predictions=FILE"),
        (["--out=o", "--checkpoint=a", "--predictions=b"], "either"),
        (["--out=o", "--predictions=b"], "--references"),
        (["--out=o", "--checkpoint=a", "--references=b"], "--references goes with --predictions"),
        (["--out=o", "--checkpoint=a", "--metrics=,"], "--metrics is empty"),
        (["--out=o", "--predictions=b", "--references=c", "--metrics=,"], "--metrics is empty"),
        (["--out=o", "--checkpoint=absent"], "absent"),
        (["--out=o", "--checkpoint=a", "--limit=-1"], "--limit: it is -1; it must be at least 0"),
    ],
)
def test_bad_arguments(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("here")
    code, _, err, _ = run(results(), coco())
    assert code == 2 and "is a file" in err
    assert (tmp_path / "out").read_text() == "here"
