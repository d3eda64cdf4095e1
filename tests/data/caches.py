"""Feature caches of what an encoder of tests says."""

import numpy as np

from har_jax.data.dataset import open_split
from har_jax.data.features.build import Build, write
from har_jax.data.features.cache import (
    FeatureCache,
    Origin,
    digest_of,
)
from har_jax.data.images import Preprocessor

SHAPE = (3, 5)


ORIGIN = Origin("models/clip", "sha256:" + "a" * 64, "patch", -2, Preprocessor().identity)


def feature_of(image_id):
    """What the encoder of these tests says of an image."""
    return np.random.RandomState(image_id % 2**32).randn(*SHAPE).astype(np.float32)


def rows(split, first, stop):
    for i in range(first, stop, 2):
        some = [split[k] for k in range(i, min(i + 2, stop))]
        features = np.stack([feature_of(example.image_id) for example in some])
        yield features, np.array([digest_of(example.image) for example in some], np.uint64)


def planned(directory, out, *, dtype="float32", names=("train", "val"), origin=ORIGIN, per_shard=8):
    """A build of `per_shard` images of 60 bytes (float32) per shard: 4 of train, 1 of val."""
    splits = {name: open_split(directory, name) for name in names}
    size = per_shard * SHAPE[0] * SHAPE[1] * (4 if dtype == "float32" else 2)
    return Build(out, origin, SHAPE, dtype, splits, "scenes", size)


def make(directory, out, **options):
    build = planned(directory, out, **options)
    assert write(build, rows)
    return FeatureCache(out)
