"""What people write for an id, and that each way of writing it finds the same image."""

import json

import numpy as np
import pytest
from PIL import Image

from har_jax import ids
from har_jax.data.dataset import captions_path, open_split
from har_jax.evaluate import main as evaluate
from har_jax.evaluation.references import numbers_of
from har_jax.ids import NoId, read_id
from har_jax.prepare import main as prepare

WRITTEN = {
    12: [12, 12.0, "12", " 12 ", "12.0", "000012", "+12", np.int32(12), np.float32(12)],
    2**40: [2**40, str(2**40), float(2**40)],
    "img_0": ["img_0", " img_0"],
    "1e3": ["1e3"],
    "é": ["é", "e\u0301"],
    "١٢": ["١٢"],
}


@pytest.mark.parametrize("meant", WRITTEN)
def test_one_id_however_it_is_written(meant):
    assert [read_id(value) for value in WRITTEN[meant]] == [meant] * len(WRITTEN[meant])


@pytest.mark.parametrize(
    "value",
    [
        *(1.5, "1.5", -1, "-1", -0.5, float("nan"), float("inf"), 1e300, "1e+30", True, None, []),
        *({}, "", " ", "nan", "None", "<NA>", "\ud800", "x" * 5000, 10**4000, b"12"),
    ],
)
def test_what_is_no_id(value):
    with pytest.raises(NoId) as error:
        read_id(value)
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_numbers_of_ids():
    made = ids.numbered(["img_0", 2**40, 7, 2**31 - 1, 2**31])
    assert made[7] == 7 and made[2**31 - 1] == 2**31 - 1
    assert all(0 <= number < 2**31 for number in made.values()) and len(set(made.values())) == 5
    assert ids.numbered(["img_0"])["img_0"] == made["img_0"], "it depends on the id alone"
    taken = ids.numbered(["img_0", made["img_0"]])
    assert len(set(taken.values())) == 2 and taken[made["img_0"]] == made["img_0"]


def test_each_way_of_writing_meets_the_references(tmp_path, capsys):
    """Through `prepare` and `evaluate`: names, large numbers, texts and floats."""
    images = tmp_path / "images"
    images.mkdir()
    written = ["12", 13.0, "img_0", 2**40, "000014"]
    again = [12, "13", "img_0", str(2**40), 14.0]
    rows, given = [], []
    for number, image_id in enumerate(written):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
        text = f"picture {number} of a dog"
        rows.append({"image": f"{number}.png", "image_id": image_id, "caption": text})
        given.append({"image_id": again[number], "caption": text})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    (tmp_path / "results.json").write_text(json.dumps(given))
    out, where = tmp_path / "data", f"--images={images}"
    captions = f"--captions={tmp_path / 'captions.json'}"
    assert prepare(["folder", where, captions, f"--out={out}", "--strict"]) == 0
    split = open_split(out, "train")
    assert split.ids[0] == 12 and split.ids[1] == 13 and split.ids[4] == 14
    assert all(0 <= i < 2**31 for i in split.ids) and len(set(split.ids)) == 5
    asked = [f"--predictions={tmp_path / 'results.json'}", f"--out={tmp_path / 'scores'}"]
    asked += [f"--references={captions_path(out, 'train')}", "--metrics=ROUGE_L,CIDEr"]
    assert evaluate([*asked, f"--against={tmp_path / 'results.json'}"]) == 0, capsys.readouterr()
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["ROUGE_L"] == 1 and scores["n_images"] == 5
    found = json.loads((tmp_path / "scores" / "per_image.json").read_text())
    assert [row["image_id"] for row in found] == [12, 13, "img_0", 2**40, 14]
    numbers = numbers_of(split)  # what a run is compared with is found by the same ids
    assert [numbers[i] for i in (12, 13, "img_0", 2**40, 14)] == split.ids
    # By the names of their files, too.
    for number, row in enumerate(given):
        row["image_id"] = f"{number}.png"
    (tmp_path / "results.json").write_text(json.dumps(given))
    assert evaluate(asked) == 0


def test_two_ids_of_one_image_are_refused(tmp_path, capsys):
    truth = {
        "images": [{"id": 5, "file_name": "5.jpg"}],
        "annotations": [{"image_id": "5", "caption": "a dog"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(truth))
    rows = [{"image_id": i, "caption": "a dog"} for i in (5, "5.jpg")]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    asked = [f"--predictions={tmp_path / 'results.json'}", f"--out={tmp_path / 'scores'}"]
    assert evaluate([*asked, f"--references={tmp_path / 'captions.json'}"]) == 2
    assert "5 and '5.jpg' are one image" in capsys.readouterr().err
