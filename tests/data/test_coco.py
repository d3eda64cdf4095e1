"""COCO's and Karpathy's annotation files, whole and broken."""

import collections
import io
import json
import re

import pytest
from PIL import Image

from har_jax.data import photographs
from har_jax.data.dataset import open_split, read_card
from har_jax.data.entries import Problems
from har_jax.data.readers import coco
from har_jax.errors import UserError


def prepare(out, *, captions, images, splits=None, restval="train", **options):
    """`prepare coco` as a function: (card, lines on what was dropped)."""
    return photographs.prepare(
        out,
        lambda problems: coco.read_files(
            captions, splits=splits, restval=restval, problems=problems
        ),
        images,
        name="coco",
        description="",
        settings={},
        options=photographs.Options(**options),
    )


@pytest.fixture
def photos(tmp_path):
    """A folder of five small photographs, one of them cut off and one not an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        buffer = io.BytesIO()
        Image.effect_noise((40, 30), 50).convert("RGB").save(buffer, "JPEG")
        (folder / f"{i}.jpg").write_bytes(buffer.getvalue())
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:400])
    (folder / "4.jpg").write_text("<html>404</html>")
    return folder


def annotations(captions, names=None):
    """COCO's format: `captions` is {image id: [text, ...]}."""
    number = iter(range(1000))
    names = names or {i: f"{i}.jpg" for i in captions}
    return {
        "info": {},
        "images": [{"id": i, "file_name": name} for i, name in names.items()],
        "annotations": [
            {"id": next(number), "image_id": i, "caption": text}
            for i, texts in captions.items()
            for text in texts
        ],
    }


def karpathy(rows):
    """Karpathy's format: rows of (id, split, folder, texts)."""
    return {
        "dataset": "coco",
        "images": [
            {
                "cocoid": i,
                "imgid": 900 + i,
                "split": split,
                "filepath": folder,
                "filename": f"{i}.jpg",
                "sentences": [
                    {"raw": t, "sentid": 10 * i + k, "tokens": t.lower().split()}
                    for k, t in enumerate(texts)
                ],
            }
            for i, split, folder, texts in rows
        ],
    }


@pytest.fixture
def save(tmp_path):
    def save(value, name="captions.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return save


def test_a_coco_file_becomes_a_split(photos, save, tmp_path):
    path = save(annotations({0: ["A cat.", "a dog "], 2: ["Two cats", "x", "y"]}))
    card, dropped = prepare(tmp_path / "out", captions=[path], images=[photos])
    assert not dropped
    split = open_split(tmp_path / "out", "train")
    assert split.references() == {0: ["A cat.", "a dog "], 2: ["Two cats", "x", "y"]}
    assert [e.image for e in split] == [(photos / f"{i}.jpg").read_bytes() for i in (0, 2)]
    assert [e.filename for e in split] == ["0.jpg", "2.jpg"]
    assert [e.caption_ids for e in split] == [(0, 1), (2, 3, 4)]
    assert card["splits"]["train"]["references_per_image"] == {"2": 1, "3": 1}


def test_several_files_make_several_splits(photos, save, tmp_path):
    files = [
        save(annotations({0: ["a"]}), "1.json"),
        save(annotations({1: ["b"]}), "2.json"),
        save(annotations({2: ["c"]}), "3.json"),
    ]
    prepare(tmp_path / "out", captions=files, images=[photos], splits=["train", "val", "train"])
    assert open_split(tmp_path / "out", "train").references() == {0: ["a"], 2: ["c"]}
    assert open_split(tmp_path / "out", "val").references() == {1: ["b"]}
    with pytest.raises(UserError, match="3 captions files but 1 splits"):
        prepare(tmp_path / "b", captions=files, images=[photos], splits=["train"])


@pytest.mark.parametrize(
    ("restval", "expected"),
    [
        ("train", {"train": {0, 1}, "test": {2}}),
        ("keep", {"train": {0}, "restval": {1}, "test": {2}}),
        ("drop", {"train": {0}, "test": {2}}),
    ],
)
def test_karpathys_splits(photos, save, tmp_path, restval, expected):
    """Images lie in folders of their own, as val2014/ and train2014/ do."""
    (tmp_path / "all" / "val2014").mkdir(parents=True)
    (photos / "1.jpg").rename(tmp_path / "all" / "val2014" / "1.jpg")
    rows = [
        (0, "train", "train2014", ["one"]),
        (1, "restval", "val2014", ["two"]),
        (2, "test", "val2014", ["three", "four"]),
    ]
    path = save(karpathy(rows))
    card, dropped = prepare(
        tmp_path / "out", captions=[path], images=[photos, tmp_path / "all"], restval=restval
    )
    assert not dropped
    found = {name: set(open_split(tmp_path / "out", name).ids) for name in card["splits"]}
    assert found == expected
    with pytest.raises(UserError, match="names the split of each image"):
        prepare(tmp_path / "b", captions=[path], images=[photos], splits=["val"])


def test_what_is_dropped_is_counted_and_named(photos, save, tmp_path):
    data = annotations(
        {
            0: ["good", "  ", "", 7, None, "also good"],
            1: [],
            2: ["\n"],
            3: ["the file is cut off"],
            4: ["the file is a web page"],
            5: ["the file is missing"],
        }
    )
    data["images"].append({"id": 0, "file_name": "0.jpg"})
    data["annotations"].append({"id": 999, "image_id": 77, "caption": "of nothing"})
    data["annotations"] += [{"id": 0, "image_id": 0, "caption": "good"}, {"image_id": 1.5}, 7]
    path = save(data)
    card, dropped = prepare(tmp_path / "out", captions=[path], images=[photos])
    assert open_split(tmp_path / "out", "train").references() == {0: ["good", "also good"]}
    assert card["dropped"] == {
        "captions of images that are not listed": 1,
        "captions listed twice": 1,
        "empty captions": 3,
        "captions that are not text": 2,
        "malformed annotations": 2,
        "images without captions": 2,
        "images listed twice": 1,
        "images that do not decode": 2,
        "image files that are missing": 1,
    }
    assert read_card(tmp_path / "out")["dropped"] == card["dropped"]
    told = "\n".join(dropped)
    assert "3.jpg does not decode" in told and "4.jpg is not an image" in told
    assert "1 image files that are missing: 5.jpg" in told


def test_caption_ids_that_restart_lose_nothing(photos, save, tmp_path):
    """Some tools count annotations anew for each image."""
    data = annotations({0: ["a", "b"], 1: ["c", "d"], 2: ["e", "e"]})
    for number, annotation in enumerate(data["annotations"]):
        annotation["id"] = number % 2
    card, dropped = prepare(tmp_path / "out", captions=[save(data)], images=[photos], strict=True)
    assert not dropped and card["splits"]["train"]["captions"] == 6
    split = open_split(tmp_path / "out", "train")
    assert split.references() == {0: ["a", "b"], 1: ["c", "d"], 2: ["e", "e"]}
    assert [e.caption_ids for e in split] == [(1, 2), (3, 4), (5, 6)]


@pytest.mark.parametrize("bom", [False, True])
def test_malformed_rows_are_dropped_and_strict_stops(photos, save, tmp_path, bom):
    data = annotations({0: ["a"], 1: ["b"]})
    data["images"] += [7, {"id": 1.5, "file_name": "2.jpg"}, {"id": 2, "file_name": ["2.jpg"]}]
    data["annotations"] += [None, {"image_id": 0}]
    path = save("\ufeff" * bom + json.dumps(data))
    card, dropped = prepare(tmp_path / "out", captions=[path], images=[photos])
    assert card["dropped"] == {"malformed images": 3, "malformed annotations": 2}
    assert "image 3 has trouble: id: the id is 1.5, which is no whole number" in dropped[0]
    with pytest.raises(UserError, match="strict drops nothing"):
        prepare(tmp_path / "strict", captions=[path], images=[photos], strict=True)
    rows = [(0, "train", "", ["one"]), (1, "train", "", ["two"]), (2, "Split 1", "", ["three"])]
    data = karpathy(rows)
    data["images"][1]["sentences"].append({"tokens": []})
    card, _ = prepare(tmp_path / "k", captions=[save(data)], images=[photos])
    assert card["dropped"] == {"malformed sentences": 1, "malformed images": 1}


def test_nothing_outside_of_the_folders_is_copied(photos, save, tmp_path):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes((photos / "1.jpg").read_bytes())
    names = {
        0: "0.jpg",
        1: "../secret.jpg",
        2: str(outside),
        5: f"x/../../{photos.name}/../secret.jpg",
    }
    names |= {6: str(photos / "2.jpg"), 7: f"../{photos.name}/1.jpg"}
    path = save(annotations({i: [f"text {i}"] for i in names}, names))
    card, _ = prepare(tmp_path / "out", captions=[path], images=[photos])
    assert set(open_split(tmp_path / "out", "train").ids) == {0, 6, 7}
    assert card["dropped"] == {"image files outside of --images": 3}
    with pytest.raises(UserError, match=r"outside of --images: \.\./secret\.jpg"):
        prepare(tmp_path / "b", captions=[path], images=[photos], strict=True)


def test_near_names_are_suggested(photos, save, tmp_path):
    (photos / "sub").mkdir()
    (photos / "0.jpg").rename(photos / "sub" / "0.jpg")
    (photos / "1.jpg").rename(photos / "Caf\u00e9.jpg")
    names = {0: "sub\\0.jpg", 1: "cafe\u0301.jpg", 2: "2.jpg", 5: "2", 6: "2.jpeg", 7: "else.jpg"}
    path = save(annotations({i: ["a"] for i in names}, names))
    card, dropped = prepare(tmp_path / "out", captions=[path], images=[photos])
    assert card["dropped"] == {"image files that are missing": 5}
    told = dropped[0]
    assert "sub\\0.jpg (did you mean 'sub/0.jpg'?)" in told and "'Caf\u00e9.jpg'" in told
    assert told.count("(did you mean '2.jpg'?)") == 2 and told.endswith("else.jpg")


@pytest.mark.parametrize("texts", [{0: ["a", ""]}, {0: ["a"], 3: ["cut off"]}])
def test_strict_stops_with_the_list(photos, save, tmp_path, texts):
    path = save(annotations(texts))
    with pytest.raises(UserError, match=r"strict drops nothing, .*(empty|3\.jpg)"):
        prepare(tmp_path / "out", captions=[path], images=[photos], strict=True)
    assert not (tmp_path / "out").exists()
    card, _ = prepare(tmp_path / "out", captions=[path], images=[photos])  # what it read is kept
    assert sum(card["dropped"].values()) == 1
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json at all", "not valid JSON"),
        (json.dumps(annotations({0: ["a"]}))[:-20], "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "no list `images`; got a list"),
        ("{}", "no list `images`; got an object with the keys"),
        ('{"images": []}', "a list `images`, but neither"),
        ('{"images": [3]}', "a list `images`, but neither"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "neither `annotations`"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 0 has no 'file_name'"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1}]}',
            "annotation 0 has no 'caption'",
        ),
        ('{"images": [{"sentences": [], "filename": "a"}]}', "image 0 has no 'split'"),
        ('{"images": [{"sentences": 4, "filename": "a", "split": "val"}]}', "trouble: "),
        ('{"images": [{"id": 1.5, "file_name": "a"}], "annotations": []}', "trouble: id: .*1.5"),
        ('{"images": [{"id": 1e999, "file_name": "a"}], "annotations": []}', "trouble: "),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": ["b"]}', "trouble: "),
        ('{"images": [5, 5, 5, {"id": 1}], "annotations": []}', "not one row can be used"),
    ],
)
def test_files_that_are_no_captions(photos, save, tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(tmp_path / "out", captions=[save(content)], images=[photos])
    assert re.search(r"captions\.json|a\.jpg", str(error.value)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_files_and_folders(photos, save, tmp_path):
    path = save(annotations({0: ["a"]}))
    with pytest.raises(UserError, match="there is no file"):
        prepare(tmp_path / "out", captions=[tmp_path / "x.json"], images=[photos])
    with pytest.raises(UserError, match="no such directory"):
        prepare(tmp_path / "out", captions=[path], images=[tmp_path / "x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image to write"):
        prepare(tmp_path / "out", captions=[path], images=[tmp_path / "empty"])
    assert not list(tmp_path.glob("*out*"))


def test_an_image_in_two_splits_is_refused(photos, save, tmp_path):
    files = [save(annotations({0: ["a"]}), "1.json"), save(annotations({0: ["b"]}), "2.json")]
    with pytest.raises(UserError, match="image 0 is in 'train' and in 'val'"):
        prepare(tmp_path / "o", captions=files, images=[photos], splits=["train", "val"])


def test_real_photographs(real_data, tmp_path):
    import tensorflow_datasets as tfds

    mini = real_data / "coco_mini"
    card, dropped = prepare(
        tmp_path / "out",
        captions=[mini / "annotations" / f"captions_{s}2017.json" for s in ("train", "val")],
        images=[mini / "train2017", mini / "val2017"],
        splits=["train", "val"],
    )
    assert not dropped
    assert {name: figures["images"] for name, figures in card["splits"].items()} == {
        "train": 80,
        "val": 79,
    }
    source = tfds.builder_from_directory(tmp_path / "out").as_data_source("val")
    assert all(record["image"].shape[2] == 3 for record in source)


def test_all_references_of_val2017_are_read(real_data):
    """Against pycocotools' reading of the same file; 13 images have 6 or 7 captions."""
    from pycocotools.coco import COCO

    path = real_data / "coco_val2017_captions.json"
    problems = Problems()
    entries = coco.read_files([path], splits=["val"], problems=problems).entries
    theirs = COCO(path)
    assert not problems.counts
    assert len(entries) == 5000 and sum(len(e.captions) for e in entries) == 25014
    counts = collections.Counter(len(entry.captions) for entry in entries)
    assert counts[6] + counts[7] == 13 and counts[5] == 5000 - 13
    for entry in entries:
        expected = {(a["id"], a["caption"]) for a in theirs.imgToAnns[entry.image_id]}
        assert set(entry.captions) == expected
