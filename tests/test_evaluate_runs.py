"""Runs captioned and scored by `python -m har_jax.evaluate`."""

from __future__ import annotations

import json

import pytest

from har_jax import metrics
from har_jax.data.dataset import open_split
from har_jax.evaluate import main
from tests.metrics.test_chair import COCO


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory):
    """A run of two steps: its captions are noise, but everything about them is real."""
    from har_jax import train
    from tests.training.commands import train_arguments

    path = tmp_path_factory.mktemp("runs") / "mle"
    assert train.main(train_arguments(workspace, path, steps=2)) == 0
    return path


def test_a_run_is_captioned_and_scored(trained, workspace, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    out = tmp_path / "eval"
    flags = [f"--checkpoint={trained}", "--control=shuffle", "--limit=11", f"--out={out}"]
    assert main(flags) == 0
    scores = json.loads((out / "scores.json").read_text())
    split = open_split(workspace / "data", "test")
    rows = json.loads((out / "per_image.json").read_text())
    assert [row["image_id"] for row in rows] == split.ids[:11]
    assert all(row["references"] == split.references()[row["image_id"]] for row in rows)
    assert scores["n_images"] == 11 and "ratio" in scores["control"]
    assert scores["source"] | {"split": "test", "step": 2, "method": "greedy"} == scores["source"]
    assert "config.eval.clip_score" in scores["skipped"]["CLIPScore"]
    cut = sum(not row["ended"] for row in rows) / len(rows)
    assert scores["health"]["cut_rate"] == pytest.approx(cut)
    assert "mle, step 2, test, greedy: 11 images" in capsys.readouterr().out
    before = (out / "predictions.json").read_text()
    assert main([*flags, "--batch-size=16", f"--against={out}"]) == 0
    against = json.loads((out / "scores.json").read_text())["against"]
    assert against["n_images"] == 11 and against["metrics"]["CIDEr"]["difference"] == 0
    assert (out / "predictions.json").read_text() == before, "batches do not show in the captions"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--split=tset", "did you mean 'test'"),
        ("--step=77", "no checkpoint of step 77"),
        ("--data=absent", "absent"),
        ("--clip=absent", "absent"),
        ("--against=absent.json", "there is no file 'absent.json'"),
    ],
)
def test_what_a_run_lacks(trained, tmp_path, capsys, flag, message):
    out = tmp_path / "eval"
    assert main([f"--checkpoint={trained}", flag, f"--out={out}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not out.exists()


def test_a_run_has_chair_by_the_objects_of_its_images(trained, workspace, tmp_path, capsys):
    """As `chair` has it of the captions that were written."""
    split = open_split(workspace / "data", "test")
    names = sorted(COCO.values())
    objects = {i: {names[k % len(names)]} for k, i in enumerate(split.ids)}
    numbers = {name: number for number, name in COCO.items()}
    path, out = tmp_path / "instances.json", tmp_path / "eval"
    given = {
        "images": [{"id": i} for i in split.ids],
        "annotations": [
            {"image_id": i, "category_id": numbers[name]}
            for i, those in objects.items()
            for name in those
        ],
        "categories": [{"id": k, "name": name} for k, name in COCO.items()],
    }
    path.write_text(json.dumps(given))
    flags = [f"--checkpoint={trained}", "--limit=4", "--metrics=CIDEr", f"--out={out}"]
    assert main([*flags, f"--instances={path}"]) == 0, capsys.readouterr().err
    texts = {
        r["image_id"]: r["caption"] for r in json.loads((out / "predictions.json").read_text())
    }
    truth = split.references()
    expected = metrics.chair(texts, objects, {i: truth[i] for i in texts})
    scores = json.loads((out / "scores.json").read_text())
    assert scores["CHAIRs"] == expected.chair_s and scores["CHAIRi"] == expected.chair_i
    assert expected.signature in scores["signature"]
    # Images that the file does not have are told before anything is captioned.
    path.write_text(json.dumps(given | {"images": given["images"][1:], "annotations": []}))
    assert main([*flags, f"--instances={path}", f"--out={tmp_path / 'other'}"]) == 2
    assert "lacks 1 that have predictions" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
