"""CLIPScore and PAC-S as functions of plain images and texts: `har_jax.metrics.clip_score`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.metrics import on_texts
from har_jax.metrics.embedding_scores import KindName, find_kind
from har_jax.metrics.embedding_scores import clip_score as from_embeddings
from har_jax.metrics.on_texts import Predictions, References, Scores
from har_jax.scorers.clip import ClipFiles, ClipScorer
from har_jax.settings import Count, checked_number

Images = Sequence[Any] | Mapping[Any, Any] | np.ndarray
"""Paths, encoded bytes, PIL images, or uint8 arrays [H,W,3]."""


def clip_score(
    images: Images,
    captions: Predictions,
    references: References | None = None,
    *,
    clip: str | os.PathLike[str] | ClipScorer,
    kind: KindName = "clip",
    batch_size: int = 64,
) -> Scores:
    """CLIPScore of one caption per image; with references RefCLIPScore too. Of kind "pac": PAC-S
    and RefPAC-S, whose `clip` has other weights.

    Args:
      images, captions, references: lists of one order, or {id: entry} of the same ids.
      clip: a CLIP's or SigLIP's directory or hub name. Of several calls, a
        `scorers.clip.ClipScorer` is loaded and compiled once.
      kind: "clip", or "pac"; a `ClipScorer` has its own.
      batch_size: images or texts embedded at a time.

    Raises:
      UserError: images, captions and references do not belong together, an image that cannot be
        read, or `clip` is no such network.
    """
    checked_number("batch_size", batch_size, Count)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    given = {"captions": captions, "images": images}
    if references is not None:
        given["references"] = references
    (texts, pictures, *others), ids = on_texts.aligned(**given)
    own = {i: on_texts.text_of(image, texts[i]) for i, image in enumerate(ids)}
    if isinstance(clip, ClipScorer):
        scorer = clip
    else:
        scorer = ClipScorer(ClipFiles(clip, find_kind(kind)), batch_size=batch_size)
    score = scorer.files.kind
    if others:
        truth = {i: on_texts.texts_of(image, others[0][i]) for i, image in enumerate(ids)}
        found = scorer.score(enumerate(pictures), own, truth)
        means = {score.key: found.clip_score, score.ref_key: found.ref_clip_score}
        values = [dict(zip(means, found.per_image[i], strict=True)) for i in own]
    else:
        looks = scorer.embed_images(pictures)
        each = from_embeddings(looks, scorer.embed_texts(list(own.values())), score)
        means = {score.key: float(np.mean(each))}
        values = [{score.key: value} for value in each.tolist()]
    return Scores(means, dict(zip(ids, values, strict=True)), {}, scorer.signature)
