"""Scores of each domain of a dataset that has some (nocaps): how far a captioner generalises.

Each domain is scored by itself, as nocaps' users do: the document frequencies of its CIDEr are
those of its own references. Averages over the domains are therefore not the score of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.metrics.corpus import score_captions

METRICS = ("CIDEr", "Bleu", "ROUGE_L")
_MEANS = ("SPICE", "CLIPScore", "RefCLIPScore")
"""Metrics whose value for a corpus is the mean over its images."""


def score_domains(
    domains: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    per_image: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """{domain: {"n_images", "CIDEr", "Bleu_1" .., "ROUGE_L", and what else was scored}}.

    Args:
      domains: {image id: its domain}, of all predicted images.
      per_image: rows of `per_image.json`.
    """
    found: dict[str, dict[str, Any]] = {}
    for domain in sorted({domains[i] for i in predictions}):
        ids = [i for i in predictions if domains[i] == domain]
        scores = score_captions(
            {i: references[i] for i in ids}, {i: predictions[i] for i in ids}, metrics=METRICS
        )
        row: dict[str, Any] = {"n_images": len(ids)}
        row |= {key: value for key, value in scores.corpus.items() if value is not None}
        wanted = set(ids)
        own = [image for image in per_image if image["image_id"] in wanted]
        for key in _MEANS:
            values = [image[key] for image in own if key in image]
            if len(values) == len(ids):
                row[key] = sum(values) / len(values)
        found[domain] = row
    return found
