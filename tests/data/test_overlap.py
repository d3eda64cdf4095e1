"""ImageSet that two splits share, and how `prepare` keeps them apart."""

import json
import shutil

import numpy as np
import pytest

from har_jax.data import overlap
from har_jax.data.builder import write
from har_jax.data.dataset import Example, id_space, open_split
from har_jax.data.overlap import ImageSet
from har_jax.errors import UserError
from har_jax.prepare import main
from tests.data.test_dataset import forget_sums, png


def dataset(path, rows, ids="coco"):
    """`rows` of (split, image id, shade); images of one shade are the same file."""
    examples = [(split, Example(i, f"{i}.png", png(shade), ["a"])) for split, i, shade in rows]
    splits = list(dict.fromkeys(split for split, _, _ in rows))
    write(path, examples, name="made", splits=splits, description="", settings={}, ids=ids)
    return path


def test_by_id_in_one_id_space_and_by_content_always(tmp_path):
    trained = dataset(tmp_path / "a", [("train", i, i) for i in range(5)])
    scored = [("test", 3, 103), ("test", 4, 4), ("test", 50, 0), ("test", 51, 104)]
    images = overlap.image_set(open_split(trained, "train"))
    same = open_split(dataset(tmp_path / "b", scored), "test")
    found = overlap.shared(same, [images])
    assert (found.by_id, found.by_content, found.ids) == ([3, 4], [4, 50], [3, 4, 50])
    assert str(found) == "3 images (2 by id: 3, 4; 2 by content: 4, 50)"
    for space in ("nocaps", ""):
        other = open_split(dataset(tmp_path / f"c{space}", scored, ids=space), "test")
        assert overlap.shared(other, [images]).by_id == []
        assert overlap.shared(other, [images]).by_content == [4, 50]


def test_datasets_without_hashes_are_read(tmp_path, monkeypatch):
    path = dataset(tmp_path / "a", [("train", i, i) for i in range(5)])
    whole = overlap.image_set(open_split(path, "train"))
    index = json.loads((path / "captions.train.json").read_text())
    for image in index["images"]:
        del image["sha256"]
    (path / "captions.train.json").write_text(json.dumps(index))
    forget_sums(path)
    assert overlap.image_set(open_split(path, "train")) == whole
    monkeypatch.setattr(overlap, "_HASHED_AT_ONCE", 10)  # a large one is not
    assert overlap.image_set(open_split(path, "train")).contents == frozenset()


def test_id_spaces(tmp_path, scenes_dir):
    foreign = tmp_path / "foreign"
    shutil.copytree(scenes_dir, foreign)
    for path in [*foreign.glob("captions.*"), foreign / "dataset.json"]:
        path.unlink()
    assert id_space(foreign) == ""
    info = json.loads((foreign / "dataset_info.json").read_text())
    (foreign / "dataset_info.json").write_text(json.dumps(info | {"name": "coco_captions"}))
    assert id_space(foreign) == "coco"
    for card, space in (
        ({"name": "coco"}, "coco"),
        ({"name": "scenes", "settings": {"seed": 4}}, "scenes-4"),
        ({"name": "coco", "ids": "flickr30k"}, "flickr30k"),
    ):
        (foreign / "dataset.json").write_text(json.dumps(card))
        assert id_space(foreign) == space


def test_what_a_run_saw_is_kept(tmp_path):
    images = [
        ImageSet("coco", frozenset({1, 5, 2**40}), frozenset({3, 2**64 - 1})),
        ImageSet("", frozenset(range(10)), frozenset()),
    ]
    assert overlap.load(tmp_path) is None
    overlap.save(tmp_path, images)
    assert overlap.load(tmp_path) == images
    path = tmp_path / overlap.TRAINED_ON
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"trained_on\.npz is not a list"):
        overlap.load(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """Files 0.png .. 9.png; 7 is a copy of 1, and 8 of 3, and 9 of 0."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(png({7: 1, 8: 3, 9: 0}.get(i, i)))

    def captions(name, **splits):
        images = [
            {
                "cocoid": i,
                "split": split,
                "filename": f"{i}.png",
                "sentences": [{"raw": f"photo {i}", "sentid": i}],
            }
            for split, ids in splits.items()
            for i in ids
        ]
        (tmp_path / name).write_text(json.dumps({"images": images}))
        return ["coco", f"--images={folder}", f"--captions={tmp_path / name}"]

    return captions


def ids_of(directory):
    card = json.loads((directory / "dataset.json").read_text())
    return {split: open_split(directory, split).ids for split in card["splits"]}


def test_the_same_file_in_two_splits(photos, tmp_path, capsys):
    arguments = photos("c.json", train=[1, 2, 3, 4], val=[5, 8], test=[6, 7])
    out = tmp_path / "d"
    assert main([*arguments, f"--out={out}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 images have the same bytes as one of another split" in error
    assert "7.png (id 7, test) = 1.png (id 1, train)" in error and "--duplicates=drop" in error
    assert not out.exists()
    assert main([*arguments, f"--out={out}", "--duplicates=drop"]) == 0
    assert ids_of(out) == {"train": [2, 4], "val": [5, 8], "test": [6, 7]}
    assert "2 images with the bytes of one in a held-out split" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


def test_copies_within_a_split_stay_and_are_told(photos, tmp_path, capsys):
    arguments = photos("c.json", train=[0, 1, 7, 9], test=[5])
    assert main([*arguments, f"--out={tmp_path / 'd'}", "--strict"]) == 0
    assert ids_of(tmp_path / "d")["train"] == [0, 1, 7, 9]
    assert "2 images have the same bytes as another of the split" in capsys.readouterr().out


def test_excluding_another_dataset(photos, tmp_path, capsys, monkeypatch):
    """Training images that stand in somebody's test set go, by id and by content."""
    test = tmp_path / "test"
    assert main([*photos("t.json", test=[4, 7], val=[6]), f"--out={test}"]) == 0
    arguments = photos("c.json", train=[0, 1, 2, 4, 6])
    assert main([*arguments, f"--out={tmp_path / 'a'}", f"--exclude={test}:test", "--strict"]) == 0
    assert ids_of(tmp_path / "a") == {"train": [0, 2, 6]}  # 4 by its id, 1 is the file of 7
    assert "2 images that are in" in capsys.readouterr().out
    assert main([*arguments, f"--out={tmp_path / 'b'}", f"--exclude={test}"]) == 0
    assert ids_of(tmp_path / "b") == {"train": [0, 2]}
    for path in test.glob("captions.*"):  # as a foreign dataset of other ids, and a large one
        path.unlink()
    (test / "dataset.json").unlink()
    monkeypatch.setattr(overlap, "_HASHED_AT_ONCE", 10)
    assert main([*arguments, f"--out={tmp_path / 'e'}", f"--exclude={test}"]) == 2
    assert "keeps no hashes of its images" in capsys.readouterr().err
    assert main([*arguments, f"--out={tmp_path / 'e'}", f"--exclude={test}:tset"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err


def test_train2017_against_karpathys_test(real_data, tmp_path, capsys):
    """The classic: val2014 images of Karpathy's test are train2017 images by another name."""
    mini = real_data / "coco_mini"
    coco = json.loads((mini / "annotations" / "captions_train2017.json").read_text())
    sentences = {}
    for a in coco["annotations"]:
        sentences.setdefault(a["image_id"], []).append({"raw": a["caption"], "sentid": a["id"]})
    chosen = np.random.default_rng(0).choice(len(coco["images"]), 10, replace=False)
    karpathy = [
        {
            "cocoid": coco["images"][i]["id"],
            "split": "test",
            "filepath": "val2014",
            "filename": coco["images"][i]["file_name"],
            "sentences": sentences[coco["images"][i]["id"]],
        }
        for i in chosen
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    images = f"--images={mini / 'train2017'}"
    train = [f"--captions={mini / 'annotations' / 'captions_train2017.json'}", "--split=train"]
    held = ["coco", images, f"--captions={tmp_path / 'dataset_coco.json'}"]
    assert main([*held, f"--out={tmp_path / 'karpathy'}"]) == 0
    both = ["coco", images, train[0], f"--captions={tmp_path / 'dataset_coco.json'}"]
    assert main([*both, f"--out={tmp_path / 'both'}"]) == 2
    assert "is in 'train' and in 'test' (10 images are in two splits)" in capsys.readouterr().err
    assert main(["coco", images, *train, f"--out={tmp_path / 'all'}"]) == 0
    found = overlap.shared(
        open_split(tmp_path / "karpathy", "test"),
        [overlap.image_set(open_split(tmp_path / "all", "train"))],
    )
    assert len(found.by_id) == len(found.by_content) == 10
    arguments = ["coco", images, *train, f"--exclude={tmp_path / 'karpathy'}:test"]
    assert main([*arguments, f"--out={tmp_path / 'rest'}"]) == 0
    rest = overlap.image_set(open_split(tmp_path / "rest", "train"))
    assert len(rest.ids) == 70
    assert not overlap.shared(open_split(tmp_path / "karpathy", "test"), [rest]).ids
