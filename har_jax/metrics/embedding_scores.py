"""CLIPScore, PAC-S and their reference-aware kin from CLIP embeddings.

    CLIP-S(image, caption)     = 2.5 max(cos(image, caption), 0)
    RefCLIP-S(image, caption)  = harmonic mean of CLIP-S and max(max_r cos(caption, reference r), 0)
    PAC-S, RefPAC-S            = the same with 2 for 2.5, by a CLIP of other weights

as Hessel et al. (arXiv 2104.08718) define them and github.com/jmhessel/clipscore computes them: the
reference cosine is *not* scaled by 2.5. That code leaves out the last maximum with 0, so that a
caption unlike all its references may score -500,000 there, where the two terms nearly cancel; it
scores 0 here.
Captions and references are embedded with the prompt "A photo depicts " before them. Other tools
(torchmetrics, j-min) scale differently, so their values are not comparable.

PAC-S (Sarto et al., arXiv 2303.12112) and PAC-S++ (arXiv 2410.07336) are by CLIPs that learnt on,
the first its projections, the second low-rank adapters, from generated captions and images beside
the real ones. github.com/aimagelab/pacscore computes both so, with the same prompt and without that
maximum too. A `Kind` is what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from har_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

PROMPT = "A photo depicts "
KindName = Literal["clip", "pac"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A score of an image, a caption and its references by their cosines.

    Attributes:
      key, ref_key: what it is called, without and with references.
      weight: of max(cos(image, caption), 0).
      prompt: what stands before captions and references.
      part: its name as a part of a reward.
    """

    key: str
    ref_key: str
    weight: float
    prompt: str
    part: str


CLIP = Kind("CLIPScore", "RefCLIPScore", 2.5, PROMPT, "clip_score")
PAC = Kind("PAC-S", "RefPAC-S", 2.0, PROMPT, "pac_score")
KINDS: dict[str, Kind] = {"clip": CLIP, "pac": PAC}


def find_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
      UserError: there is none.
    """
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(
            f"kind={name!r:.60} is no score by embeddings{did_you_mean(str(name), KINDS)}; "
            f"choose from {known}"
        )
    return KINDS[name]


def clip_score(
    images: Float[np.ndarray, "n d"], captions: Float[np.ndarray, "n d"], kind: Kind = CLIP
) -> Float64[np.ndarray, " n"]:
    """CLIP-S, or another kind, of caption i for image i; in [0, the kind's weight]. Embeddings need
    not be normalised.

    Raises:
      UserError: the shapes differ, or an embedding is zero or not finite.
    """
    images, captions = _unit("image", images), _unit("caption", captions)
    if images.shape != captions.shape:
        raise UserError(
            f"image embeddings {images.shape} and caption embeddings {captions.shape} differ; "
            f"{kind.key} needs one caption per image, from the same CLIP"
        )
    return kind.weight * np.maximum(np.einsum("nd,nd->n", images, captions), 0.0)


def ref_clip_score(
    images: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "n d"],
    references: Sequence[Float[np.ndarray, "_r d"]],
    kind: Kind = CLIP,
) -> Float64[np.ndarray, " n"]:
    """RefCLIP-S, or another kind, of caption i, given the embeddings of image i's references. 0
    where a part is.

    Raises:
      UserError: as `clip_score`, or an image without references.
    """
    first = clip_score(images, captions, kind)
    if len(references) != len(first):
        raise UserError(f"got references of {len(references)} images for {len(first)} captions")
    units = _unit("caption", captions)
    second = np.empty_like(first)
    for i, of_image in enumerate(references):
        if not len(of_image):
            raise UserError(
                f"row {i} has no references; {kind.ref_key} needs at least one per image"
            )
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
