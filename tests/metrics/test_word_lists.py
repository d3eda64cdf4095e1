"""A text where words, or a list of texts, are expected: refused by everything that takes them."""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.errors import UserError
from har_jax.metrics import (
    bleu_counts,
    cider_d,
    coco_words,
    corpus_cider,
    corpus_ngrams,
    gender,
    hallucination,
    health,
    ngrams,
    official,
    rouge_l,
)
from har_jax.metrics.cider_d import CiderD
from har_jax.metrics.document_frequency import DocumentFrequency
from har_jax.rewards import bleu, mix, per_caption
from har_jax.rewards import cider_d as cider_d_reward

WORDS = ["a", "dog", "runs"]
GROUP = [WORDS, ["the", "dog"]]
TRUTH = {1: GROUP, 2: [["two", "cats"]]}
OWN = {1: WORDS, 2: ["cats"]}
RAW = {1: ["a dog runs", "the dog"], 2: ["two cats"]}
DF = DocumentFrequency.from_references(TRUTH.values())
D = CiderD(DF, TRUTH, eos=True)
IDS, ENDED = np.array([1, 2]), np.ones((2, 1), bool)
CAPTIONS = [["a dog"], ["cats"]]

# Every function that takes words: what it is called with. One text is put in at every depth.
TAKES_WORDS = {
    "metrics.ngrams.of": (lambda words: list(ngrams.of(words, 2)), [WORDS]),
    "metrics.coco_words.mentions": (coco_words.mentions, [WORDS]),
    "metrics.hallucination.named": (hallucination.named, [WORDS]),
    "metrics.corpus_ngrams.count_ngrams": (corpus_ngrams.count_ngrams, [TRUTH, OWN]),
    "metrics.rouge_l.corpus_rouge": (rouge_l.corpus_rouge, [TRUTH, OWN]),
    "metrics.gender.mentions": (gender.mentions, [WORDS]),
    "metrics.gender.support": (gender.support, [GROUP]),
    "metrics.gender.summary": (gender.summary, [TRUTH, OWN]),
    **{
        f"metrics.health.{name}": (getattr(health, name), [GROUP])
        for name in (
            *("bad_end_rate", "mean_length", "repetition_rate", "empty_rate"),
            *("distinct_captions", "vocabulary_size", "summary"),
        )
    },
    "metrics.official.scores": (lambda *of: list(official.scores("CIDEr", *of)), [TRUTH, OWN]),
    "metrics.official.meteor": (official.meteor, [TRUTH, OWN]),
    "metrics.official.spice": (official.spice, [TRUTH, OWN]),
    "DocumentFrequency.from_references": (
        lambda of_images: DocumentFrequency.from_references(of_images),
        [[GROUP, [["two"]]]],
    ),
    "DocumentFrequency.get": (DF.get, [WORDS[:2]]),
    "CiderD": (lambda truth: CiderD(DF, truth, eos=True), [TRUTH]),
    "CiderD.score": (lambda captions: D.score([1, 2], captions), [[[WORDS], [["cats"]]]]),
    "BleuReward.figures": (lambda words: bleu.BleuReward(RAW).figures(1, words), [WORDS]),
    "LengthPenalty.figures": (lambda w: per_caption.LengthPenalty(RAW).figures(1, w), [WORDS]),
    "RepetitionPenalty.figures": (lambda w: per_caption.RepetitionPenalty().figures(1, w), [WORDS]),
    "BiasPenalty.figures": (lambda words: per_caption.BiasPenalty(RAW).figures(1, words), [WORDS]),
}
SPEC = "cider_d + bleu + bias + bias_balanced + length + repetition"
SUM = mix.build(SPEC, DF, RAW)
# And what takes lists of texts: here the innermost text is what belongs there.
TAKES_TEXTS = {
    **{
        f"reward {name}": (lambda captions, part=part: part(IDS, captions, ENDED), [CAPTIONS])
        for name, part in SUM.parts.items()
    },
    "the sum": (lambda captions: SUM(IDS, captions, ENDED), [CAPTIONS]),
    "CiderDReward": (lambda raw: cider_d_reward.CiderDReward(DF, raw), [RAW]),
    **{
        f"build {name}": (lambda raw, name=name: mix.build(name, DF, raw), [RAW])
        for name in ("cider_d", "bleu", "bias", "length")
    },
    "metrics.official.words": (lambda raw: official.words(raw, OWN), [RAW]),
}


def spoiled(value, text, leaf):
    """`value` with `text` in the place of each list of it, one at a time."""
    if isinstance(value, list | dict):
        if leaf or not all(isinstance(part, str) for part in value):
            yield text
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            if isinstance(part, str):
                continue
            for other in spoiled(part, text, leaf):
                copy = value.copy()
                copy[key] = other
                yield copy
    if not leaf and isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield text


@pytest.mark.parametrize("name", [*TAKES_WORDS, *TAKES_TEXTS])
@pytest.mark.usefixtures("untyped")
def test_a_text_is_refused_wherever_words_or_lists_belong(name):
    call, arguments = (TAKES_WORDS | TAKES_TEXTS)[name]
    if "official" not in name:  # Java need not be there
        call(*arguments)

    @given(st.text(min_size=1, max_size=8))
    def refused(text):
        for place, argument in enumerate(arguments):
            if isinstance(argument, dict):  # a text for a mapping is no mistake of this kind
                cases = [c for c in spoiled(argument, text, True) if not isinstance(c, str)]
            else:
                cases = list(spoiled(argument, text, True))
            assert cases
            for case in cases:
                with pytest.raises(UserError):
                    call(*arguments[:place], case, *arguments[place + 1 :])

    refused()


def test_the_line_says_what_to_do():
    with pytest.raises(UserError, match=r"letters would be counted; give a list of words"):
        rouge_l.corpus_rouge({1: ["a dog"]}, {1: "a dog"})
    with pytest.raises(UserError, match=r"give a list, \[text\] for a single one"):
        SUM(np.array([1]), ["a dog"], np.ones((1, 1), bool))


def test_nothing_that_takes_words_is_missing_here():
    modules = (bleu_counts, cider_d, coco_words, corpus_cider, corpus_ngrams, gender, hallucination)
    for module in (*modules, health, ngrams, official, rouge_l):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            kinds = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
            if any(re.search(r"\bWords\b", kind) or kind == "Sequence[str]" for kind in kinds):
                told = f"{module.__name__.removeprefix('har_jax.')}.{name}"
                assert told in TAKES_WORDS, told
