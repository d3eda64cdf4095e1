"""Feature caches that were damaged on their way, and features and ids from other programs."""

from __future__ import annotations

import functools
import io
import json
import pathlib
import random
import shutil

import numpy as np
import pytest

from har_jax.data.dataset import open_split
from har_jax.data.features.build import Build, is_complete, write
from har_jax.data.features.cache import MANIFEST, FeatureCache, Origin, file_digest
from har_jax.data.features.imported import open_import
from har_jax.foreign import read_json
from har_jax.prepare import main
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt, command
from tests.fuzz.test_datasets import whole  # noqa: F401  (a fixture)

ORIGIN = Origin("models/clip", "sha256:" + "a" * 64, "patch", -2, {"size": 3})


def rows(split, first, stop):
    for i in range(first, stop):
        features = np.random.default_rng(i).normal(size=(1, 3, 5)).astype(np.float32)
        yield features, np.array([0], np.uint64)


@pytest.fixture(scope="module")
def cache(whole, tmp_path_factory):  # noqa: F811
    split = open_split(whole, "train")
    out = tmp_path_factory.mktemp("fuzz") / "cache"
    digests = iter(int.from_bytes(bytes.fromhex(x[:16]), "little") for x in split.listing.contents)

    def own(split, first, stop):
        for features, _ in rows(split, first, stop):
            yield features, np.array([next(digests)], np.uint64)

    assert write(Build(out, ORIGIN, (3, 5), "float16", {"train": split}, "d", 60), own)
    return out


def draw(data: pathlib.Path, whole: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:  # noqa: F811
    directory = folder / "cache"
    shutil.copytree(whole, directory)
    names = sorted(path.name for path in directory.iterdir())
    path = directory / rng.choice([MANIFEST, "train.index.npy", *names])
    what = rng.random()
    if what < 0.05:
        path.unlink()
    elif what < 0.1:
        path.write_bytes((directory / rng.choice(names)).read_bytes())
    elif path.suffix == ".json":
        path.write_bytes(hostile.json_bytes(rng, read_json(path, "")))
    else:
        path.write_bytes(hostile.damaged(rng, path.read_bytes()))
        if rng.random() < 0.6:  # whoever damages it writes its sums anew
            manifest = json.loads((directory / MANIFEST).read_text())
            part = manifest["splits"]["train"]
            for entry in (part["index"], *part["shards"]):
                if entry["file"] == path.name:
                    entry |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            (directory / MANIFEST).write_text(json.dumps(manifest))
    split = open_split(data, "train")

    def take() -> None:
        found = FeatureCache(directory)
        found.check_origin(ORIGIN)
        found.describe()
        assert found.of(split).take(np.arange(len(split))).shape == (len(split), *found.shape)

    build = Build(directory, ORIGIN, (3, 5), "float16", {"train": split}, "d", 60)
    calls = [
        take,
        take,
        lambda: FeatureCache(directory).verify(),
        lambda: is_complete(build),
        lambda: command(main, ["verify", str(directory)]),
    ]
    return Case(rng.choice(calls))


def test_feature_caches(whole, cache, tmp_path, record_property):  # noqa: F811
    attempt(
        "feature caches", 1000, functools.partial(draw, whole, cache), tmp_path, record_property
    )


def array(rng: random.Random) -> bytes:
    """What NumPy saves, whole or damaged."""
    shape, kind = rng.choice([(5, 4), (5, 2, 4)]), rng.choice(["f2", "f4", "f8", ">f4", "g"])
    if rng.random() < 0.3:
        shape = rng.choice([(5,), (), (0, 4), (4, 3), (5, 1, 1, 2)])
    if rng.random() < 0.2:
        kind = rng.choice(["i8", "c8", "b1", "U5", "M8[s]"])
    values = np.asarray(np.random.default_rng(rng.randrange(99)).normal(size=shape) * 9)
    with np.errstate(all="ignore"):
        made = values.astype("i8").astype(kind) if kind == "M8[s]" else values.astype(kind)
    if rng.random() < 0.2:
        made = np.asfortranarray(made)
    if made.dtype.kind == "f" and made.size and rng.random() < 0.2:
        made.reshape(-1)[0] = rng.choice([np.nan, np.inf, -np.inf])
    if rng.random() < 0.05:
        made = np.array([{}, []] * 3, object)
    buffer = io.BytesIO()
    if rng.random() < 0.1:
        np.savez(buffer, made)
    else:
        np.save(buffer, made)
    data = buffer.getvalue()
    if rng.random() < 0.3:
        data = hostile.damaged(rng, data)
    if rng.random() < 0.1:
        header = rng.choice(["(" * 3000, "{'descr': 'f4', 'shape': (10**9,)}", "[]", "__import__"])
        data = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    return data


def imported(data: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    (folder / "array.npy").write_bytes(array(rng))
    ids: list = [0, 1, 2, 3, 4]
    kind = rng.choice(["npy", "json", "txt"])
    file = folder / f"ids.{kind}"
    if kind == "npy":
        if rng.random() < 0.5:
            np.save(file, np.array(ids, rng.choice(["i8", "u8", "i1", ">i4", "f8"])))
        else:
            file.write_bytes(array(rng))
    elif kind == "json":
        file.write_bytes(
            json.dumps(ids).encode() if rng.random() < 0.5 else hostile.json_bytes(rng, ids)
        )
    else:
        if rng.random() < 0.5:
            ids[rng.randrange(5)] = rng.choice([1, hostile.number(rng), hostile.text(rng)])
        file.write_bytes("\n".join(map(str, ids)).encode(errors="surrogatepass"))
    out = folder / "cache"
    split = open_split(data, "train")

    def build() -> None:
        found = open_import(folder / "array.npy", file)
        found.check_covers(split)
        origin = Origin("imported:a", file_digest(found.path), found.kind, None, {})
        write(Build(out, origin, found.shape, "float16", {"train": split}, "d"), found.rows)
        assert np.isfinite(FeatureCache(out).of(split).take(np.arange(5))).all()

    return Case(build, [out])


def test_imported_features(whole, tmp_path, record_property):  # noqa: F811
    attempt("imported features", 500, functools.partial(imported, whole), tmp_path, record_property)
