"""Directories of tokenizers, each file of them damaged; what loads, writes and reads a text."""

from __future__ import annotations

import functools
import pathlib
import random

import pytest

from har_jax.text.tokenizer import (
    load_clip_tokenizer,
    load_tokenizer,
    train_clip_tokenizer,
    train_gpt2_tokenizer,
    train_tokenizer,
)
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt
from tests.fuzz.hf_models import TEXTS, damaged_copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(TEXTS, 290, root / "lm")
    train_gpt2_tokenizer(TEXTS, 290, root / "gpt2")
    train_clip_tokenizer(TEXTS, 560, root / "clip", 20)
    train_clip_tokenizer(TEXTS, 560, root / "merges", 20)
    (root / "merges" / "tokenizer.json").unlink()
    named = '{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}'
    for name in ("lm", "clip", "gpt2", "merges"):
        (root / name / "special_tokens_map.json").write_text(named if name == "lm" else "{}")
        config = '{"bos_token_id": 1, "eos_token_id": [2], "text_config": {}}'
        (root / name / "config.json").write_text(config)
        generation = '{"bos_token_id": 1, "eos_token_id": [2, 0, 17]}'
        (root / name / "generation_config.json").write_text(generation)
    (root / "lm" / "tokenizer_config.json").write_text("{}")
    return root


def draw(root: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    kind = rng.choice(["lm", "lm", "gpt2", "clip", "merges", "merges"])
    made = damaged_copy(rng, root / kind, folder)
    if not any((made / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        kind = "merges" if kind != "lm" else kind  # transformers' own way is slow: not drawn here
    text = hostile.text(rng)

    def call() -> None:
        if kind in ("clip", "merges"):
            load_clip_tokenizer(made)([text, "a dog"])
        else:
            tokenizer = load_tokenizer(made)
            assert max((*tokenizer.begin, *tokenizer.eos_ids)) < tokenizer.vocab_size
            tokenizer.decode(tokenizer.encode("a dog"))
            if not any("\ud800" <= c <= "\udfff" for c in text):
                tokenizer.encode_batch([text])
            tokenizer.parts(tokenizer.vocab_size if tokenizer.vocab_size < 1000 else 10)

    return Case(call)


def test_directories(whole, tmp_path, record_property):
    attempt("tokenizers", 1000, functools.partial(draw, whole), tmp_path, record_property)
