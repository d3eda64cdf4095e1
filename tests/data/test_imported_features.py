"""Features of other programs: an array and the ids of its images become a cache."""

import json

import numpy as np
import pytest
from PIL import Image

from har_jax import prepare
from har_jax.data.dataset import open_split
from har_jax.data.features.build import Build, write
from har_jax.data.features.cache import FeatureCache, Origin
from har_jax.data.features.imported import open_import
from har_jax.errors import UserError
from tests.data.caches import ORIGIN, SHAPE, feature_of


@pytest.mark.parametrize("kind", ["npy", "json", "txt"])
def test_an_array_and_ids_become_a_cache(scenes_dir, tmp_path, kind):
    val = open_split(scenes_dir, "val")
    ids = np.array([*val.ids, 999_999])[::-1]  # another order, and one that is not asked for
    array = np.stack([feature_of(i) for i in ids])
    np.save(tmp_path / "array.npy", array.astype(np.float64))
    file = tmp_path / f"ids.{kind}"
    if kind == "npy":
        np.save(file, ids)
    else:
        file.write_text(json.dumps(ids.tolist()) if kind == "json" else "\n".join(map(str, ids)))
    found = open_import(tmp_path / "array.npy", file)
    assert (found.kind, found.shape) == ("patch", SHAPE)
    found.check_covers(val)
    with pytest.raises(UserError, match=r"lacks 30 of the 30 images of split 'train'"):
        found.check_covers(open_split(scenes_dir, "train"))
    origin = Origin("imported:mine", "sha256:1", found.kind, None, {})
    build = Build(tmp_path / "cache", origin, found.shape, "float32", {"val": val}, "scenes")
    assert write(build, found.rows)
    features = FeatureCache(build.out).of(val).take(np.arange(7))
    np.testing.assert_array_equal(features, [feature_of(i) for i in val.ids])
    with pytest.raises(UserError, match=r"holds imported features \('imported:mine'\), not those"):
        FeatureCache(build.out).check_origin(ORIGIN)


def test_one_vector_per_image_is_pooled(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 7), np.float16))
    (tmp_path / "ids.txt").write_text("4\n5\n")
    found = open_import(tmp_path / "a.npy", tmp_path / "ids.txt")
    assert (found.kind, found.shape) == ("pooled", (1, 7))


@pytest.mark.parametrize(
    ("array", "ids", "message"),
    [
        (None, "1\n2", "there is no file"),
        (np.ones((2, 3)), None, "there is no file"),
        (np.ones((2, 3)), "1\n2\n3", r"has 3 ids, but .* has 2 rows"),
        (np.ones((2, 3)), "1\n1", "image id 1 occurs twice"),
        (np.ones((2, 3)), "1\n1.5", "entry 2: .*1.5.*; give an image id for each row"),
        (np.ones((2, 3)), "1\n1.0", "image id 1 occurs twice"),
        (np.ones(2), "1\n2", r"shape \[2\]; features are floats of shape"),
        (np.ones((2, 3), int), "1\n2", "holds int64 of shape"),
        (np.array([{}, {}]), "1\n2", "is not a .npy file of numbers"),
        (np.ones((2, 3)), "1\n-2", "give an image id for each row"),
        (np.zeros(2, [("x" * 500, "f4")]), "1\n2", "; features are floats of shape"),
    ],
)
def test_imports_that_do_not_fit(tmp_path, array, ids, message):
    if array is not None:
        np.save(tmp_path / "a.npy", array)
    if ids is not None:
        (tmp_path / "ids.txt").write_text(ids)
    with pytest.raises(UserError, match=message):
        open_import(tmp_path / "a.npy", tmp_path / "ids.txt")


def test_imports_that_would_be_read_wrong(tmp_path):
    """Each was a traceback, or other features than were meant."""
    (tmp_path / "ids.txt").write_text("1\n2")
    np.savez(tmp_path / "a.npz", np.ones((2, 3)))
    with pytest.raises(UserError, match=r"is an \.npz, several arrays in a file; save features"):
        open_import(tmp_path / "a.npz", tmp_path / "ids.txt")
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    found = open_import(tmp_path / "a.npy", tmp_path / "ids.txt")
    np.testing.assert_array_equal(found.array[1, 0], [3, 4, 5])
    np.save(tmp_path / "ids.npy", np.array([1, 2**63], np.uint64))  # came back negative
    assert open_import(tmp_path / "a.npy", tmp_path / "ids.npy").row_of == {1: 0, 2**63: 1}
    np.save(tmp_path / "ids.npy", np.array([1.0, 2.0]))
    with pytest.raises(UserError, match="flat list of numbers or names"):
        open_import(tmp_path / "a.npy", tmp_path / "ids.npy")
    for text in ("[1, [2]]", "[1, 1.5]", '{"1": 2}', "[1, true]", "[1, null]", "7"):
        (tmp_path / "ids.json").write_text(text)
        with pytest.raises(UserError, match=r"ids\.json'?.*; give a"):
            open_import(tmp_path / "a.npy", tmp_path / "ids.json")


@pytest.mark.parametrize("kind", ["txt", "json", "npy"])
def test_ids_may_be_names(tmp_path, kind):
    """The id that the captions file had, a file's name, or the number: each finds its image."""
    pixels, listed, captions = tmp_path / "images", [], []
    pixels.mkdir()
    for i, name in enumerate(["img_0", "img_1", 2**40, 7]):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(pixels / f"file {i}.png")
        listed.append({"id": name, "file_name": f"file {i}.png"})
        captions.append({"id": i, "image_id": name, "caption": f"picture {i}"})
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": listed, "annotations": captions}))
    data, out, ids = tmp_path / "data", tmp_path / "cache", tmp_path / f"ids.{kind}"
    argv = [f"--images={pixels}", f"--captions={file}", f"--out={data}"]
    assert prepare.main(["coco", *argv]) == 0
    written = ["000007", "file 1.png", "img_0", str(2**40)]
    if kind == "npy":
        np.save(ids, np.array(written))
    else:
        ids.write_text(json.dumps(written) if kind == "json" else "\n".join(written))
    np.save(tmp_path / "a.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    argv = [f"--data={data}", f"--import={tmp_path / 'a.npy'}", f"--ids={ids}", f"--out={out}"]
    assert prepare.main(["features", *argv]) == 0
    split = open_split(data, "train")
    found = FeatureCache(out).of(split).take(np.arange(4))[:, 0, 0]
    expected = {"file 3.png": 0, "file 1.png": 2, "file 0.png": 4, "file 2.png": 6}
    assert dict(zip(split.filenames, found.tolist(), strict=True)) == expected
