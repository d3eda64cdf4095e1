"""Scores of evaluations over some of their images, from the files that `evaluate` wrote."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from har_jax.evaluation.compare import IN_PYTHON
from har_jax.experiments.evaluated import rows_of
from har_jax.experiments.runs import read_scores
from har_jax.metrics.corpus import score_captions
from har_jax.text.words import named_in

_BY_CLIP = ("CLIPScore", "RefCLIPScore")


def first_images(systems: Mapping[str, pathlib.Path], n: int) -> dict[str, dict[str, Any]]:
    """{system: scores over the first n images of the first system}, n fewer where it has fewer.

    CIDEr is computed anew, with the document frequencies of these images' references.

    Args:
      systems: {name: the directory of its evaluation}.
    """
    rows = {name: rows_of(directory) for name, directory in systems.items()}
    ids = list(next(iter(rows.values())))[:n]
    found = {}
    for name, own in rows.items():
        references = {i: own[i]["references"] for i in ids}
        captions = {i: own[i]["caption"] for i in ids}
        words = named_in(str(read_scores(systems[name]).get("signature", "")))
        scored = score_captions(references, captions, metrics=IN_PYTHON, words=words)
        scores: dict[str, Any] = {k: v for k, v in scored.corpus.items() if v is not None}
        for key in _BY_CLIP:
            values = [own[i][key] for i in ids if own[i].get(key) is not None]
            if len(values) == len(ids):
                scores[key] = sum(values) / len(values)
        found[name] = scores | {"n_images": len(ids)}
    return found
