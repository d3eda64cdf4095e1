"""The feature cache on disk: resumable, verified, found by image id, refused where it is stale."""

import collections
import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from har_jax.data import builder
from har_jax.data.dataset import open_split
from har_jax.data.features.build import is_complete, write
from har_jax.data.features.cache import (
    MANIFEST,
    FeatureCache,
)
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import TrainBatches, eval_batches
from har_jax.data.subset import take as subset
from har_jax.errors import UserError
from tests.conftest import ROOT
from tests.data.caches import ORIGIN, SHAPE, feature_of, make, planned, rows
from tests.data.test_dataset import forget_sums


def contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_features_come_back_by_image(scenes_dir, tmp_path, dtype):
    cache = make(scenes_dir, tmp_path / "cache", dtype=dtype)
    assert cache.splits == {"train": 30, "val": 7} and cache.shape == SHAPE
    assert cache.dtype.name == dtype and cache.nbytes == 37 * 15 * cache.dtype.itemsize
    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    for name in ("train", "val"):
        split = open_split(scenes_dir, name)
        wanted = np.random.RandomState(0).permutation(len(split))
        expected = np.stack([feature_of(split.ids[i]) for i in wanted]).astype(kind)
        found = cache.of(split).take(wanted)
        assert found.dtype == cache.dtype
        np.testing.assert_array_equal(found, expected)
    assert isinstance(cache._shard(0), np.memmap)


def test_a_part_of_a_split_finds_its_own(cache, scenes_dir):
    part = subset(open_split(scenes_dir, "train"), shots=11)
    np.testing.assert_array_equal(
        cache.of(part).take(np.arange(11)), [feature_of(i) for i in part.ids]
    )


def test_batches_carry_features_in_the_place_of_images(cache, scenes_dir, tokenizer):
    split = open_split(scenes_dir, "train")
    options = {"batch_size": 4, "captions_per_image": 5, "max_tokens": 12, "seed": 1}
    plain = TrainBatches(split, Preprocessor.for_size(16), tokenizer, **options)
    cached = TrainBatches(split, None, tokenizer, features=cache, **options)
    for _ in range(20):
        a, b = next(plain), next(cached)
        assert b.keys() == a.keys() - {"image"} | {"features"}
        for key in a.keys() - {"image"}:
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(b["features"], [feature_of(i) for i in b["image_id"]])
    assert cached.get_state() == plain.get_state()
    val = open_split(scenes_dir, "val")
    batches = list(eval_batches(val, None, batch_size=3, features=cache))
    ids = np.concatenate([batch["image_id"] for batch in batches])
    np.testing.assert_array_equal(
        np.concatenate([batch["features"] for batch in batches]), [feature_of(i) for i in ids]
    )
    with pytest.raises(UserError, match="imported features and has no encoder"):
        eval_batches(val, None, batch_size=3)


# ------------------------------------------------------------------------------------ building


def test_a_build_that_broke_off_continues(cache, scenes_dir, tmp_path):
    """Killed while it writes: finished shards are not encoded again, and the result is the same."""
    script = f"""
import os, pathlib, signal
from tests.data import test_feature_cache as t
def rows(split, first, stop):
    for number, batch in enumerate(t.rows(split, first, stop)):
        if first == 16 and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
build = t.planned({str(scenes_dir)!r}, pathlib.Path({str(tmp_path / "cache")!r}))
t.write(build, rows)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "cache").exists()
    build = planned(scenes_dir, tmp_path / "cache")
    assert [shard.name for shard in build.missing()] == ["train-00002", "train-00003", "val-00000"]
    (build.staged.path / "shards" / "train-00002.7.partial").write_bytes(b"half")
    asked = []

    def counted(split, first, stop):
        asked.append((split.name, first))
        return rows(split, first, stop)

    assert write(build, counted)
    assert asked == [("train", 16), ("train", 24), ("val", 0)]
    assert contents(build.out) == contents(cache.directory)
    assert not build.staged.path.exists() and is_complete(build)


def test_parts_make_the_same_cache(cache, scenes_dir, tmp_path):
    build = planned(scenes_dir, tmp_path / "cache")
    seen = []

    def counted(split, first, stop):
        seen.extend((split.name, i) for i in range(first, stop))
        return rows(split, first, stop)

    for index in (2, 0, 1):
        complete = write(build, counted, part=(index, 3))
        assert complete == (index == 1)
    assert len(seen) == len(set(seen)) == 37
    assert contents(build.out) == contents(cache.directory)


def test_two_at_once_are_refused(scenes_dir, tmp_path):
    build = planned(scenes_dir, tmp_path / "cache")

    def meanwhile(split, first, stop):
        with pytest.raises(UserError, match="another process is writing"):
            write(build, rows)
        return rows(split, first, stop)

    assert write(build, meanwhile)


def test_an_unfinished_build_of_something_else(scenes_dir, tmp_path):
    def broken(split, first, stop):
        raise KeyboardInterrupt

    build = planned(scenes_dir, tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        write(build, broken)
    other = planned(scenes_dir, tmp_path / "cache", dtype="float16")
    with pytest.raises(UserError, match=r"unfinished feature cache with another dtype"):
        write(other, rows)
    assert write(other, rows, overwrite=True)
    with pytest.raises(UserError, match="dtype float16 there, float32 asked for"):
        is_complete(build)
    with pytest.raises(UserError, match="not empty"):
        write(build, rows)
    assert write(build, rows, overwrite=True) and FeatureCache(build.out).dtype == np.float32
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    mine = dataclasses.replace(build, out=tmp_path / "mine")
    with pytest.raises(UserError, match="is no feature cache; choose another"):
        is_complete(mine)
    with pytest.raises(UserError, match="--overwrite replaces feature caches only"):
        write(mine, rows, overwrite=True)


def test_a_disk_that_is_too_small_or_fills_up(scenes_dir, tmp_path, monkeypatch):
    build = planned(scenes_dir, tmp_path / "cache")
    free = collections.namedtuple("Usage", "total used free")(1, 1, 2219)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"needs 0\.0 GB"):
        write(build, rows)
    monkeypatch.undo()

    def full(file, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"No space left on device; what is finished is kept"):
        write(build, rows)
    assert not build.out.exists()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e5, "float16")])
def test_what_is_not_finite_is_named(scenes_dir, tmp_path, value, dtype):
    build = planned(scenes_dir, tmp_path / "cache", dtype=dtype)
    image_id = build.splits["train"].ids[11]

    def spoilt(split, first, stop):
        for number, (features, digests) in enumerate(rows(split, first, stop)):
            if first + 2 * number == 10:
                features[1, 2, 3] = value
            yield features, digests

    with pytest.raises(UserError, match=rf"image {image_id} of 'train' are not finite as {dtype}"):
        write(build, spoilt)


def test_its_size_is_told(scenes_dir, tmp_path):
    build = planned(scenes_dir, tmp_path)
    assert build.describe() == "37 images x 3 x 5 float32 = 2.2 kB, 5 shards"
    coco = dataclasses.replace(build, shape=(256, 1024), dtype="bfloat16", splits={})
    assert 113_287 * coco.row_bytes == 59_395_014_656


# ------------------------------------------------------------------------------------ refusing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fingerprint": "sha256:" + "b" * 64},
            r"stale: other weights \(aaaaaaaaaaaa of models/clip then, bbbbbbbbbbbb",
        ),
        ({"layer": -1}, r"stale: patch tokens of layer -2 then, patch tokens of layer -1 now"),
        ({"kind": "pooled", "layer": None}, r"of layer -2 then, pooled features now"),
        (
            {"preprocessing": Preprocessor.for_size(336).identity},
            r"stale: preprocessing crop_size \{'height': 224.* then, .*336.* now; preprocessing "
            r"size",
        ),
        (
            {"preprocessing": {**Preprocessor().identity, "resample": 2}},
            r"stale: preprocessing resample 3 then, 2 now\.",
        ),
    ],
)
def test_a_stale_cache_is_refused_by_name(cache, change, message):
    cache.check_origin(dataclasses.replace(ORIGIN, encoder="moved/elsewhere"))
    with pytest.raises(UserError, match=message):
        cache.check_origin(dataclasses.replace(ORIGIN, **change))


def test_other_images_are_refused(cache, scenes_dir, small_scenes, tmp_path):
    with pytest.raises(UserError, match=r"lacks 8 of the 8 images of 'test' .*holds train \(30"):
        cache.of(open_split(scenes_dir, "test"))
    val = [example for split, example in small_scenes if split == "val"]
    drawn = [val[0], *(dataclasses.replace(example, image=val[0].image) for example in val[1:])]
    directory = tmp_path / "other"  # the same ids and names, other drawings
    examples = [("val", example) for example in drawn]
    builder.write(directory, examples, name="s", splits=["val"], description="", settings={})
    message = rf"made of another image {val[1].image_id} than"
    with pytest.raises(UserError, match=message):
        cache.of(open_split(directory, "val"))
    # Where the dataset does not list what its images hold, a few are read.
    listed = directory / "captions.val.json"
    coco = json.loads(listed.read_text())
    for image in coco["images"]:
        del image["sha256"]
    listed.write_text(json.dumps(coco))
    forget_sums(directory)
    with pytest.raises(UserError, match=message):
        cache.of(open_split(directory, "val"))


def test_another_precision_is_told(cache, scenes_dir, tmp_path, caplog):
    """Features that were computed in another dtype differ by rounding: no reason to refuse them."""
    assert "compute_dtype" not in (cache.directory / MANIFEST).read_text()  # as in older caches
    now = dataclasses.replace(ORIGIN, compute_dtype="bfloat16")
    cache.check_origin(ORIGIN)
    assert not caplog.messages
    cache.check_origin(now)
    (line,) = caplog.messages
    assert "were computed in float32 and this run computes in bfloat16" in line
    other = make(scenes_dir, tmp_path / "other", origin=now)
    assert other.origin == now and other.fingerprint != cache.fingerprint
    with pytest.raises(UserError, match="computed in bfloat16 there, float32 asked for"):
        is_complete(planned(scenes_dir, tmp_path / "other"))


def test_which_tokens_were_kept_is_part_of_the_origin(scenes_dir, tmp_path):
    """Caches from before there was a choice say nothing of it, and have those of the patches."""
    assert not {"tokens", "compute_dtype"} & ORIGIN.to_json().keys()
    origin = dataclasses.replace(ORIGIN, tokens="all")
    cache = make(scenes_dir, tmp_path / "all", origin=origin, names=("val",))
    assert cache.origin == origin and FeatureCache(tmp_path / "all").origin.tokens == "all"
    with pytest.raises(UserError, match="all tokens of layer -2 then, patch tokens of layer -2"):
        cache.check_origin(ORIGIN)
    other = dataclasses.replace(ORIGIN, tokens="after_first")
    assert "all tokens but the first of layer -2 now" in origin.differences(other)[0]
