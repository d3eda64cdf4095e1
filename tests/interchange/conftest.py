"""Directories of weights."""

import shutil

import pytest

from har_jax.interchange.families.clip import save_clip
from har_jax.interchange.families.mistral import save_mistral
from har_jax.models.decoders import Mistral
from har_jax.models.encoders.clip import CLIP
from tests.interchange.weight_files import CLIP_CONFIG, LM, random


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    save_mistral(random(Mistral, LM), directory / "lm")
    save_clip(random(CLIP, CLIP_CONFIG), directory / "clip")
    return directory


@pytest.fixture
def lm(saved, tmp_path):
    """A directory that a test may damage."""
    return shutil.copytree(saved / "lm", tmp_path / "lm")


@pytest.fixture
def clip(saved, tmp_path):
    return shutil.copytree(saved / "clip", tmp_path / "clip")
