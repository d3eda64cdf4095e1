"""What is in a dataset: the figures of `dataset.json`, and the closing report for a person."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

MOST_TOKENS = 64
"""A bound on `max_tokens` where it is chosen by the data: one rambling caption pads all others."""


def tokens_needed(lengths: Sequence[int]) -> int:
    """T for 999 of 1,000 captions, EOS included, rounded up to a multiple of four, at most 64."""
    longest = math.ceil(np.quantile(lengths, 0.999, method="higher"))
    return min(-(-longest // 4) * 4, MOST_TOKENS)


def word_figures(images: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """JSON-able figures of a split, given the words of each caption of each of its images."""
    captions = [words for image in images for words in image]
    per_image = collections.Counter(map(len, images))
    lengths = list(map(len, captions))
    return {
        "images": per_image.total(),
        "captions": len(captions),
        "references_per_image": {str(n): count for n, count in sorted(per_image.items())},
        "vocabulary": len(set().union(*captions)),
        "words_per_caption": {
            "mean": round(float(np.mean(lengths)), 2) if lengths else 0.0,
            "median": int(np.median(lengths)) if lengths else 0,
            "max": max(lengths, default=0),
        },
    }


def token_figures(lengths: Sequence[int]) -> dict[str, Any]:
    """Lengths in tokens, EOS included, and the `data.max_tokens` that they ask for."""
    needed = tokens_needed(lengths)
    return {
        "mean": round(float(np.mean(lengths)), 2),
        "quantile_0.999": int(np.quantile(lengths, 0.999, method="higher")),
        "max": max(lengths),
        "max_tokens": needed,
        "longer": sum(length > needed for length in lengths),
    }


def report(card: Mapping[str, Any]) -> Iterator[str]:
    """The contents of `dataset.json`, in lines for a person."""
    for split, figures in card["splits"].items():
        spread = ", ".join(f"{n} x {count}" for n, count in figures["references_per_image"].items())
        words = figures["words_per_caption"]
        yield f"  {split}: {figures['images']} images, {figures['captions']} captions"
        yield f"    references per image (references x images): {spread}"
        yield (
            f"    words per caption: {words['mean']} on average, {words['max']} at most; "
            f"vocabulary of {figures['vocabulary']} words"
        )
        if tokens := figures.get("tokens_per_caption"):
            yield (
                f"    tokens per caption, end included: {tokens['mean']} on average, "
                f"{tokens['quantile_0.999']} hold 99.9 %, {tokens['max']} at most; "
                f"data.max_tokens={tokens['max_tokens']} would cut {tokens['longer']} captions"
            )
        if domains := figures.get("domains"):
            yield "    domains: " + ", ".join(f"{name} {n}" for name, n in domains.items())
        if copies := figures.get("copies"):
            yield f"    {copies} images have the same bytes as another of the split"
    if not card["dropped"]:
        yield "  nothing was dropped"
