"""Signs of collapse that a rising CIDEr hides: captions that break off, repeat or all look alike.

SCST without EOS in its reward breeds captions ending in "with a" (ruotianluo/self-critical.pytorch,
issue 283); watch `bad_end_rate` above all. Each raises `UserError` of a text instead of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from har_jax.metrics import ngrams
from har_jax.metrics.word_lists import Words, refuse_text, refuse_texts

# The list of self-critical.pytorch, longer by this, that, his, her, by, from, and.
_BAD_ENDINGS = """
a an the this that his her in for at of with by from before after on upon near to is are am and
"""
BAD_ENDINGS = frozenset(_BAD_ENDINGS.split())
"""Words no sentence ends with."""


def bad_end_rate(captions: Sequence[Words]) -> float:
    """Share of captions, in [0, 1], whose last word is in `BAD_ENDINGS`."""
    refuse_texts(captions)
    bad = sum(bool(words) and words[-1] in BAD_ENDINGS for words in captions)
    return bad / max(1, len(captions))


def mean_length(captions: Sequence[Words]) -> float:
    """Words per caption."""
    refuse_texts(captions)
    return sum(map(len, captions)) / max(1, len(captions))


def repetition_rate(captions: Sequence[Words], *, n: int = 2) -> float:
    """Share of n-grams, in [0, 1], that already occurred in the same caption."""
    refuse_texts(captions)
    total = repeated = 0
    for words in captions:
        grams = list(ngrams.of(words, n))
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / max(1, total)


def empty_rate(captions: Sequence[Words]) -> float:
    """Share of captions, in [0, 1], without any word."""
    refuse_texts(captions)
    return sum(not words for words in captions) / max(1, len(captions))


def distinct_captions(captions: Sequence[Words]) -> float:
    """Share of captions, in (0, 1], that are different texts; near 0 means one caption for all."""
    refuse_texts(captions)
    texts = [tuple(words) for words in captions]
    return len(set(texts)) / max(1, len(texts))


def vocabulary_size(captions: Sequence[Words]) -> int:
    """Number of different words."""
    refuse_texts(captions)
    return len({word for words in captions for word in words})


def summary(captions: Iterable[Words]) -> dict[str, float]:
    """All of the above by name, for metrics writers."""
    refuse_text(captions)
    captions = list(captions)
    figures = bad_end_rate, mean_length, repetition_rate, empty_rate, distinct_captions
    return {figure.__name__: figure(captions) for figure in (*figures, vocabulary_size)}
