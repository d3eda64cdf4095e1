"""CLIPScore and RefCLIPScore from CLIP embeddings (Hessel et al., arXiv 2104.08718).

    CLIP-S(image, caption)     = 2.5 max(cos(image, caption), 0)
    RefCLIP-S(image, caption)  = harmonic mean of CLIP-S and max(max_r cos(caption, reference r), 0)

as the paper defines them and github.com/jmhessel/clipscore computes them: the reference cosine is
*not* scaled by 2.5. That code leaves out the last maximum with 0, so that a caption unlike all its
references may score -500,000 there, where the two terms nearly cancel; it scores 0 here.
Captions and references are embedded with the prompt "A photo depicts " before them. Other tools
(torchmetrics, j-min) scale differently, so their values are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from har_jax.errors import UserError

PROMPT = "A photo depicts "
WEIGHT = 2.5


def clip_score(
    images: Float[np.ndarray, "n d"], captions: Float[np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
    """CLIP-S of caption i for image i; embeddings need not be normalised. In [0, 2.5].

    Raises:
      UserError: the shapes differ, or an embedding is zero or not finite.
    """
    images, captions = _unit("image", images), _unit("caption", captions)
    if images.shape != captions.shape:
        raise UserError(
            f"image embeddings {images.shape} and caption embeddings {captions.shape} differ; "
            "CLIPScore needs one caption per image, from the same CLIP"
        )
    return WEIGHT * np.maximum(np.einsum("nd,nd->n", images, captions), 0.0)


def ref_clip_score(
    images: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "n d"],
    references: Sequence[Float[np.ndarray, "_r d"]],
) -> Float64[np.ndarray, " n"]:
    """RefCLIP-S of caption i, given the embeddings of image i's references. 0 where a part is.

    Raises:
      UserError: as `clip_score`, or an image without references.
    """
    first = clip_score(images, captions)
    if len(references) != len(first):
        raise UserError(f"got references of {len(references)} images for {len(first)} captions")
    units = _unit("caption", captions)
    second = np.empty_like(first)
    for i, of_image in enumerate(references):
        if not len(of_image):
            raise UserError(f"row {i} has no references; RefCLIPScore needs at least one per image")
        second[i] = max(0.0, np.max(_unit("reference", of_image) @ units[i]))
    total = first + second
    # The reference code divides by zero when both are 0.
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total != 0)


def _unit(name: str, vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Rows of length 1, in float64 (half-precision cosines differ in the fourth digit)."""
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2:
        raise UserError(f"{name} embeddings have shape {vectors.shape}, need [n, d]")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not good.all():
        raise UserError(f"{name} embedding {int(np.argmin(good))} is zero or not finite")
    return vectors / norms
