"""Captions of any text through what counts their words: metrics, rewards, document frequencies."""

from __future__ import annotations

import importlib.util
import pathlib
import random
import shutil

import numpy as np
import pytest

from har_jax.metrics import official
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.metrics.corpus import score_captions
from har_jax.rewards import mix
from har_jax.text import ptb
from har_jax.text.words import PTB, WHITESPACE, find_words
from tests.fuzz import hostile
from tests.fuzz.harness import ALL, Case, attempt

BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", " "]
WORDS = ["a", "dog", "A.B.", "it's", "1", "1/2", "U.S.", "(two)", "--", "cats.", "cannot", "gonna"]
ICU = [find_words("icu")] if importlib.util.find_spec("icu4py") else []
WORDS += ["犬が走る", "เด็กเล่น", "e\u0301", "10\u202f000"]
WORDS += ["e.g.", "|||", "$3.50", ":-)", "#1", "a@b.c", "plan B."]


def caption(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return hostile.text(rng)
    words = [rng.choice(WORDS) for _ in range(rng.randrange(12))]
    if kind < 0.6:
        return rng.choice(BREAKS).join(words)
    return "".join(word + rng.choice([" ", " ", *BREAKS, ",", "\0", "\ud800"]) for word in words)


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    n = rng.choice([1, 2, 4])
    ids = rng.sample([0, 1, 7, 2**31 - 1, 2**40], n)
    references = {i: [caption(rng) for _ in range(rng.choice([1, 1, 3]))] for i in ids}
    written = {i: caption(rng) for i in ids}
    words = rng.choice([PTB, PTB, WHITESPACE, *ICU])

    def score() -> None:
        found = score_captions(references, written, words=words)
        values = [v for row in found.per_image.values() for v in row.values()]
        assert np.isfinite(values).all() and min(values) >= 0 and len(found.per_image) == n
        for text in written.values():
            assert words(text) == words(ptb.one_line(text))
            assert not any(mark in word for mark in BREAKS for word in words(text))
        divided = [[words(text) for text in group] for group in references.values()]
        df = DocumentFrequency.from_references(divided, words_by=words.signature)
        df.save(folder / "df.npz")
        again = DocumentFrequency.load(folder / "df.npz")
        assert (again.fingerprint, again.words_by) == (df.fingerprint, words.signature)
        spec = "cider_d + bleu - length - repetition - bias"
        reward = mix.build(spec, df, references, words=words)
        asked = np.array(ids, np.int64), [[text, ""] for text in written.values()]
        total, parts = reward.breakdown(*asked, np.ones((n, 2), bool))
        assert np.isfinite(total).all() and len(parts) == 5

    return Case(score)


def test_texts(tmp_path, record_property):
    attempt("texts", 1500, draw, tmp_path, record_property)


def test_java_reads_as_many_captions_and_the_same_words():
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    rng = random.Random("java")
    captions = [caption(rng) for _ in range(6000 if ALL else 150)]
    captions.append("a dog")  # the tool ends the last line with no break, which matters to ":-)"
    numbered = dict(enumerate(captions))
    _, theirs = official.words({i: [text] for i, text in numbered.items()}, numbered)
    assert list(theirs.values()) == ptb.tokens_of_lines(captions)
