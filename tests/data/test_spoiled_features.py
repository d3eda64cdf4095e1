"""Feature caches that someone changed or cut off."""

import json

import numpy as np
import pytest

from har_jax.data.dataset import open_split
from har_jax.data.features.cache import (
    INDEX_DTYPE,
    MANIFEST,
    FeatureCache,
    file_digest,
)
from har_jax.errors import UserError
from tests.data.caches import feature_of, make


def test_damaged_files_are_named(own_copy):
    shard = own_copy / "train-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train-00001\.npy has 607 bytes, but was written"):
        FeatureCache(own_copy)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001\.npy is missing"):
        FeatureCache(own_copy)
    shard.write_bytes(whole)
    assert FeatureCache(own_copy).verify() == []
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert FeatureCache(own_copy).verify() == ["train-00001.npy"]
    shard.write_bytes(whole.replace(b"(8, 3, 5)", b"(8, 5, 3)"))
    with pytest.raises(UserError, match=r"train-00001\.npy holds float32\[8, 5, 3\] where"):
        FeatureCache(own_copy).take(np.arange(20))
    shard.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match=r"train-00001\.npy is not a \.npy file"):
        FeatureCache(own_copy).take(np.arange(20))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_flipped_bit_of_a_feature_is_found_when_it_is_taken(scenes_dir, tmp_path, dtype):
    cache = make(scenes_dir, tmp_path / "cache", dtype=dtype)
    shard = cache.directory / "train-00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the 16th image
    shard.write_bytes(data)
    split = open_split(scenes_dir, "train")
    spoilt = FeatureCache(cache.directory)
    spoilt.of(split).take(np.arange(15))
    with pytest.raises(
        UserError, match=rf"train-00001\.npy: the features of image {split.ids[15]} "
    ):
        spoilt.of(split).take(np.arange(30))


def test_a_changed_index_is_found_at_once(own_copy, scenes_dir):
    index = own_copy / "train.index.npy"
    data = bytearray(index.read_bytes())
    data[-20] ^= 1
    index.write_bytes(data)
    with pytest.raises(UserError, match=r"train\.index\.npy is not as it was written"):
        FeatureCache(own_copy).of(open_split(scenes_dir, "val"))


def test_an_older_cache_has_no_sums_of_features(own_copy, scenes_dir):
    manifest = json.loads((own_copy / MANIFEST).read_text())
    for name, part in manifest["splits"].items():
        file = own_copy / f"{name}.index.npy"
        np.save(file, np.load(file)[["image_id", "digest"]].astype(INDEX_DTYPE.descr[:2]))
        part["index"] |= {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    (own_copy / MANIFEST).write_text(json.dumps(manifest))
    split = open_split(scenes_dir, "val")
    found = FeatureCache(own_copy).of(split).take(np.arange(7))
    np.testing.assert_array_equal(found, [feature_of(i) for i in split.ids])


@pytest.mark.parametrize(
    "change",
    [
        {"origin": {"encoder": 5}},
        {"shape": [3, -5]},
        {"shape": [3, 10**30]},
        {"shape": [10**7, 10**7]},
        {"dtype": "float8"},
        {"splits": {"train": {"images": 3}}},
        {"splits": []},
        {"origin": None},
    ],
    ids=str,
)
def test_manifests_that_mean_nothing(own_copy, change):
    manifest = json.loads((own_copy / MANIFEST).read_text())
    (own_copy / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=r"feature_cache\.json: .*make the feature cache anew"):
        FeatureCache(own_copy)


def test_a_manifest_names_no_file_outside(own_copy):
    text = (own_copy / MANIFEST).read_text()
    (own_copy / MANIFEST).write_text(text.replace('"train-00001.npy"', '"../../../etc/passwd"'))
    with pytest.raises(UserError, match=r"matching regex"):
        FeatureCache(own_copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not of format 1"),
        ('{"format": 2}', "is not of format 1"),
        ('{"format": 1}', r"missing required field origin; make"),
    ],
)
def test_a_manifest_that_is_none(own_copy, tmp_path, text, message):
    (own_copy / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=message):
        FeatureCache(own_copy)
    with pytest.raises(UserError, match=r"does not exist .*prepare features --data=DIR"):
        FeatureCache(tmp_path / "nowhere")
