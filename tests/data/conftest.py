"""A small dataset of scenes on disk, and a tokenizer for it."""

import pytest

from har_jax.data import builder
from har_jax.text.tokenizer import train_tokenizer
from tests.conftest import SIZES


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
