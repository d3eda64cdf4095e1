"""Datasets that someone changed: no code of theirs runs, and what is damaged is found."""

import copy
import json
import shutil

import pytest

from har_jax.data.dataset import open_split
from har_jax.errors import UserError
from tests.data.test_dataset import forget_sums


def test_a_dataset_runs_no_code_of_its_own(scenes_dir, tmp_path, monkeypatch):
    """TFDS imports what `pythonClassName` names; a module beside it would then run."""
    evil = tmp_path / "evil"
    shutil.copytree(scenes_dir, evil)
    forget_sums(evil)
    (tmp_path / "planted_by_a_dataset.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Image: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    whole = json.loads((evil / "features.json").read_text())
    for place in ("image", "captions", "more", ""):
        features = copy.deepcopy(whole)
        kind = {"pythonClassName": "planted_by_a_dataset.Image"}
        holder = features["featuresDict"]["features"]
        if place:
            holder[place] = holder.get(place, {}) | kind
        else:
            features |= kind
        (evil / "features.json").write_text(json.dumps(features))
        if place in ("image", "captions"):
            with pytest.raises(UserError, match=rf"feature '{place}' is a 'planted_by_a_dataset"):
                open_split(evil, "train")
        else:  # what is not read may be anything, and is not looked for
            assert (
                open_split(evil, "train")[0].image_id == open_split(scenes_dir, "train")[0].image_id
            )
    info = json.loads((evil / "dataset_info.json").read_text())
    info["moduleName"] = "planted_by_a_dataset"
    (evil / "dataset_info.json").write_text(json.dumps(info))
    open_split(evil, "train").references()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\0b", "..", "x" * 300, "{NO}"])
def test_a_dataset_reads_no_file_outside(scenes_dir, tmp_path, name):
    other = tmp_path / "other"
    shutil.copytree(scenes_dir, other)
    forget_sums(other)
    info = json.loads((other / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = name
    (other / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="names no file of the dataset"):
        open_split(other, "train")


@pytest.mark.parametrize(
    "name",
    ["captions.train.json", "scenes-train.array_record-00000", "document_frequency.train.npz"],
)
def test_what_is_missing_or_cut_off_is_found_at_once(scenes_dir, tmp_path, name):
    other = tmp_path / "other"
    shutil.copytree(scenes_dir, other)
    data = (other / name).read_bytes()
    (other / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{name} has .* bytes and was written with .*; copy"):
        open_split(other, "train")
    (other / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_split(other, "train")
    open_split(other, "val").references()  # the others are whole
    forget_sums(other)
    if name.startswith("document"):  # made anew by who needs it
        assert len(open_split(other, "train")) == 30
    else:
        with pytest.raises(UserError, match=f"{name} is missing"):
            open_split(other, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "captions.train.json"])
def test_other_bytes_are_found(scenes_dir, tmp_path, name):
    other = tmp_path / "other"
    shutil.copytree(scenes_dir, other)
    (other / name).write_text((other / name).read_text().replace("a", "b", 1))
    with pytest.raises(UserError, match=rf"{name} is not as it was written"):
        open_split(other, "train").references()


def test_flipped_bytes_of_a_record_are_found_when_it_is_read(scenes_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scenes_dir, other)
    file = other / "scenes-train.array_record-00000"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"record \d+ of .*scenes-train.* is damaged"):
        list(open_split(other, "train"))
    file.write_bytes(bytes(len(data)))
    with pytest.raises(UserError, match="holds 0 records that can be read, and dataset_info"):
        open_split(other, "train")[0]
