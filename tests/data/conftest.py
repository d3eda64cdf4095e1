"""A small dataset of scenes on disk, a tokenizer, a cache of features, and a folder of files."""

import json
import pathlib
import shutil

import pytest

from har_jax.data import builder
from har_jax.data.entries import Problems
from har_jax.data.readers import folder
from har_jax.data.readers.shares import Shares
from har_jax.text.tokenizer import train_tokenizer
from tests.conftest import SIZES
from tests.data.caches import make


@pytest.fixture(scope="session")
def scenes_dir(small_scenes, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "scenes"
    builder.write(
        directory, small_scenes, name="scenes", splits=list(SIZES), description="", settings={}
    )
    return directory


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="session")
def tokenizer(small_scenes, tokenizer_dir):
    texts = [text for _, example in small_scenes for text in example.captions]
    return train_tokenizer(texts, 400, tokenizer_dir)


@pytest.fixture(scope="module")
def cache(scenes_dir, tmp_path_factory):
    return make(scenes_dir, tmp_path_factory.mktemp("features") / "cache")


@pytest.fixture
def own_copy(cache, tmp_path):
    """A cache to spoil."""
    return pathlib.Path(shutil.copytree(cache.directory, tmp_path / "copy"))


@pytest.fixture
def save(tmp_path):
    def save(text, name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return save


@pytest.fixture
def read(tmp_path):
    """Reads a folder: {name: (split, captions)}."""

    def read(*files, problems=None, **options):
        options = {"shares": Shares(), "problems": problems or Problems()} | options
        reading = folder.read_folder(tmp_path, files, **options)
        assert reading.ids == ""  # ids of one's own mean nothing to others
        return {e.names[0]: (e.split, [text for _, text in e.captions]) for e in reading.entries}

    return read
