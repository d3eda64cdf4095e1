"""Datasets that were damaged on their way, or made to harm: opened, read, compared and verified."""

from __future__ import annotations

import functools
import io
import json
import pathlib
import random
import shutil

import pytest
from PIL import Image

from har_jax.data import builder, overlap, verify
from har_jax.data.dataset import Example, id_space, open_split, read_card, split_names
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.miniature import scenes
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt


def example(i: int) -> Example:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (i, 0, 99)).save(buffer, "PNG")
    return Example(i, f"{i}.png", buffer.getvalue(), [f"a red ball {i}", "two dogs"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "whole"
    examples = [("train", example(i)) for i in range(5)] + [("val", example(9))]
    settings = {"seed": 0, "sizes": {"train": 5}, "skew": 0.8}
    splits = ["train", "val"]
    builder.write(
        directory, examples, name="scenes", splits=splits, description="", settings=settings
    )
    return directory


def spoil(rng: random.Random, directory: pathlib.Path) -> None:
    """Damages a file, more often one of text."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    path = directory / rng.choice([name for name in names if name.endswith(".json")] + names)
    data, what = path.read_bytes(), rng.random()
    if what < 0.1:
        path.unlink()
        if what < 0.04:
            path.mkdir()
    elif what < 0.15:
        path.write_bytes((directory / rng.choice(names)).read_bytes())
    elif path.suffix == ".json" and what < 0.9:
        try:
            path.write_bytes(hostile.json_bytes(rng, json.loads(data)))
        except (ValueError, RecursionError):  # it was damaged before
            path.write_bytes(hostile.damaged(rng, data))
    else:
        path.write_bytes(hostile.damaged(rng, data))


def draw(whole: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    directory = folder / "data"
    shutil.copytree(whole, directory)
    if rng.random() < 0.5:  # without sums, damage reaches deeper
        card = json.loads((directory / "dataset.json").read_text())
        del card["files"]
        (directory / "dataset.json").write_text(json.dumps(card))
    if rng.random() < 0.2:  # foreign
        for path in [*directory.glob("captions.*"), directory / "dataset.json"]:
            path.unlink()
    for _ in range(rng.choice([1, 1, 1, 2])):
        spoil(rng, directory)

    def read() -> None:
        for name in split_names(directory):
            split = open_split(directory, name)
            examples = list(split)
            assert len(split.ids) == len(split.references()) == len(examples)
            overlap.image_set(split)

    calls = [
        read,
        read,
        lambda: verify.problems(directory),
        lambda: overlap.read_image_set(str(directory)),
        lambda: (id_space(directory), scenes.Settings.from_card(read_card(directory))),
        lambda: DocumentFrequency.load(directory / "document_frequency.train.npz").fingerprint,
    ]
    return Case(rng.choice(calls))


def test_datasets(whole, tmp_path, record_property):
    attempt("datasets", 1500, functools.partial(draw, whole), tmp_path, record_property)


def trained_on(whole: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    overlap.save(folder, [overlap.image_set(open_split(whole, "train"))])
    path = folder / overlap.TRAINED_ON
    path.write_bytes(hostile.damaged(rng, path.read_bytes()))
    return Case(lambda: overlap.load(folder))


def test_lists_of_images(whole, tmp_path, record_property):
    attempt("lists of images", 300, functools.partial(trained_on, whole), tmp_path, record_property)
