"""Captioning metrics of plain texts, without Java and, `clip_score` aside, without JAX.

    from har_jax.metrics import bleu, chair, cider, clip_score, coco_objects, rouge, score_captions

This file is a door: it holds names and where they live, and imports nothing until one is used
(docs/architecture.md, "Doors").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from har_jax.data.readers.coco_instances import coco_objects
    from har_jax.metrics.hallucination import ChairScores, chair
    from har_jax.metrics.on_texts import Scores, bleu, cider, rouge, score_captions
    from har_jax.scorers.on_images import clip_score

__all__ = [
    "ChairScores",
    "Scores",
    "bleu",
    "chair",
    "cider",
    "clip_score",
    "coco_objects",
    "rouge",
    "score_captions",
]

_HOMES = {
    **dict.fromkeys(("Scores", "bleu", "cider", "rouge", "score_captions"), "metrics.on_texts"),
    **dict.fromkeys(("ChairScores", "chair"), "metrics.hallucination"),
    "clip_score": "scorers.on_images",
    "coco_objects": "data.readers.coco_instances",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'har_jax.metrics' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"har_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
