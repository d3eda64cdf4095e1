"""Whole directories of models and adapters with a damaged file: read to the weights, or refused."""

from __future__ import annotations

import functools
import pathlib
import random

import pytest

from har_jax.config import ModelConfig
from har_jax.data.images import Preprocessor
from har_jax.interchange import llava, peft
from har_jax.interchange.families.registry import read_decoder
from har_jax.loading.blueprint import Blueprint, of_parts
from har_jax.loading.blueprint import draw as draw_blueprint
from har_jax.loading.parts import read_parts
from har_jax.loading.weights import load_base
from har_jax.models.captioner import CaptionerConfig
from har_jax.sharding import RULES, make_mesh
from har_jax.text.tokenizer import load_tokenizer
from tests.fuzz.harness import Case, attempt
from tests.fuzz.hf_models import build, damaged_copy


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build(root)
    return root


def draw_adapters(root: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    lm = read_decoder(root / "mistral")
    names = ["adapter_config.json", "adapter_model.safetensors"]
    made = damaged_copy(rng, root / "peft", folder, *names, *names, "projector_config.json")

    def call() -> None:
        _, found = peft.read_adapters(made, lm)
        for _, tensor in found.values():
            tensor.map()
        peft.read_projector(made)

    return Case(call)


def draw_directory(root: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    mesh = make_mesh()
    kind = rng.choice(["mistral", "clip", "llava"])
    made = damaged_copy(rng, root / kind, folder)

    def call() -> None:
        if kind == "llava":
            config, _ = llava.read_llava_config(made)
            model = ModelConfig(encoder=str(made), lm=str(made), vision_layer=config.vision_layer)
            blueprint = draw_blueprint_of(config, model, made)
            llava.load_llava(blueprint.structure, blueprint.config, made, mesh, RULES)
            Preprocessor.from_hf(made)
            return
        clip, lm = (made if kind == name else root / name for name in ("clip", "mistral"))
        parts = read_parts(ModelConfig(encoder=str(clip), lm=str(lm)))
        load_base(parts.blueprint, mesh, RULES)

    return Case(call)


def draw_blueprint_of(config: CaptionerConfig, model: ModelConfig, made: pathlib.Path) -> Blueprint:
    image_id = llava.image_id(made)
    return of_parts(model, config, made, made).with_text(load_tokenizer(made), image_id)


def test_adapters(models, tmp_path, record_property):
    attempt("PEFT", 800, functools.partial(draw_adapters, models), tmp_path, record_property)


def test_directories(models, tmp_path, record_property):
    draw = functools.partial(draw_directory, models)
    attempt("HF model directories", 500, draw, tmp_path, record_property)


def test_whole_ones_load(models, tmp_path):
    lm = read_decoder(models / "mistral")
    assert peft.read_adapters(models / "peft", lm)[0].rank == 2
    parts = read_parts(ModelConfig(encoder=str(models / "clip"), lm=str(models / "mistral")))
    assert load_base(parts.blueprint, make_mesh(), RULES)
    assert draw_blueprint(parts.blueprint.model).config.lm == lm
    config, _ = llava.read_llava_config(models / "llava")
    model = ModelConfig(encoder="a", lm="b", vision_layer=config.vision_layer)
    found = draw_blueprint_of(config, model, models / "llava")
    n = config.lm.vocab_size
    assert found.config.wordless == () and llava.image_id(models / "llava") == n
