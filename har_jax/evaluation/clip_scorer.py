"""CLIPScore and RefCLIPScore with a CLIP that scores and does nothing else.

The figures mean something only if that CLIP had no part in training: a captioner looks good to its
own encoder, and better to a CLIP that rewarded it. `independence_warning` compares weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from har_jax.data.images import Preprocessor
from har_jax.interchange.clip import load_clip
from har_jax.interchange.hf_dir import resolve, weights_fingerprint
from har_jax.metrics.clip_score import PROMPT, clip_score, ref_clip_score
from har_jax.models.functional import split
from har_jax.progress import progress
from har_jax.text.tokenizer import load_clip_tokenizer
from har_jax.types import Array, Float


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Means over the images and the values of each, {image id: value}."""

    clip_score: float
    ref_clip_score: float
    per_image: dict[int, tuple[float, float]]  # (CLIP-S, RefCLIP-S)


class ClipScorer:
    """A CLIP from a Hugging Face directory, with its own tokenizer and image preprocessing.

    Embeds in batches of one shape: each tower is compiled once.

    Raises:
      UserError: the directory is not a CLIP's, or lacks its tokenizer or preprocessor.
    """

    def __init__(self, directory: str | os.PathLike[str], *, batch_size: int = 64):
        path = resolve(directory)
        self.batch_size = batch_size
        self.preprocess = Preprocessor.from_hf(path)
        self.tokenize = load_clip_tokenizer(path)
        self.fingerprint = weights_fingerprint(path)
        structure, params = split(load_clip(path))
        self._params = params
        self._image = jax.jit(lambda p, x: structure.merge(p).image_embedding(x))
        self._text = jax.jit(lambda p, x: structure.merge(p).text_embedding(x))

    @property
    def signature(self) -> str:
        """What has to agree for two values to be comparable. Captions are embedded as written, not
        as PTB words, and follow the prompt."""
        weights = self.fingerprint.removeprefix("sha256:")[:12]
        return f"CLIPScore[w2.5,prompt={PROMPT.strip()!r},raw,clip={weights}]"

    def embed_images(self, images: Iterable[Any], n: int, desc: str) -> Float[np.ndarray, "n e"]:
        """Unit vectors of n images: encoded bytes, paths or PIL images."""
        pixels = (self.preprocess(image) for image in images)
        return self._embed(self._image, pixels, n, desc)

    def embed_texts(self, texts: Sequence[str], desc: str) -> Float[np.ndarray, "n e"]:
        """Unit vectors of captions, each after the prompt; too long ones are truncated."""
        return self._embed(self._text, self._tokens(texts), len(texts), desc)

    def _tokens(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        for start in range(0, len(texts), self.batch_size):
            chunk = texts[start : start + self.batch_size]
            yield from self.tokenize([PROMPT + text for text in chunk])

    def _embed(
        self,
        function: Callable[[Any, Array], Array],
        rows: Iterable[np.ndarray],
        n: int,
        desc: str,
    ) -> Float[np.ndarray, "n e"]:
        found: list[np.ndarray] = []
        batch: list[np.ndarray] = []
        size = self.batch_size

        def run() -> None:
            # The last batch is padded by repetition: a batch of another size would compile again.
            padded = np.stack(batch + batch[-1:] * (size - len(batch)))
            out = np.asarray(function(self._params, jnp.asarray(padded)))
            found.append(out[: len(batch)])
            bar.update(len(batch))
            batch.clear()

        with progress(total=n, desc=desc, unit="img" if function is self._image else "text") as bar:
            for row in rows:
                batch.append(row)
                if len(batch) == size:
                    run()
            if batch:
                run()
        return np.concatenate(found)

    def score(
        self,
        images: Iterable[tuple[int, Any]],
        predictions: Mapping[int, str],
        references: Mapping[int, Sequence[str]],
    ) -> ClipScores:
        """Scores `predictions`; `images` are pairs (image id, image) in any order, one for each."""
        order: list[int] = []

        def content() -> Iterable[Any]:
            for image_id, image in images:
                order.append(image_id)
                yield image

        image_ne = self.embed_images(content(), len(predictions), "CLIPScore, images")
        caption_ne = self.embed_texts([predictions[i] for i in order], "CLIPScore, captions")
        texts = [text for i in order for text in references[i]]
        flat = self.embed_texts(texts, "CLIPScore, references")
        ends = np.cumsum([len(references[i]) for i in order])
        reference_nre = np.split(flat, ends[:-1])
        first = clip_score(image_ne, caption_ne)
        second = ref_clip_score(image_ne, caption_ne, reference_nre)
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        return ClipScores(
            float(np.mean(first)), float(np.mean(second)), dict(zip(order, pairs, strict=True))
        )


def independence_warning(fingerprint: str, run: Mapping[str, Any]) -> str | None:
    """Why CLIPScore by this CLIP says little about the captioner of `run.json`; None if it does."""
    encoder = run.get("base", {}).get("clip", {})
    digest = fingerprint.removeprefix("sha256:")
    if encoder.get("fingerprint") == fingerprint:
        return (
            "CLIPScore is not independent: the CLIP that scores is the captioner's own encoder "
            f"({encoder.get('path')}); give another one with --clip=HF_DIR"
        )
    if digest[:8] in (run.get("reward_signature") or ""):
        return (
            "CLIPScore is not independent: the CLIP that scores was also part of the reward "
            f"({run.get('reward_signature')}); give another one with --clip=HF_DIR"
        )
    return None
