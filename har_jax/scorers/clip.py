"""CLIPScore and RefCLIPScore with a CLIP, or a SigLIP, that scores and does nothing else; PAC-S
with one whose weights were made for it (`metrics.embedding_scores`).

The figures mean something only if that CLIP had no part in training: a captioner looks good to its
own encoder, and better to a CLIP that rewarded it. `independence_warning` compares weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.registry import two_towers
from har_jax.interchange.hf_dir import resolve, weights_fingerprint
from har_jax.metrics.embedding_scores import CLIP, Kind, clip_score, ref_clip_score
from har_jax.models.encoders.clip import unit
from har_jax.models.functional import Params, Structure
from har_jax.progress import progress
from har_jax.types import Array, Float


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Means over the images and the values of each, {image id: value}."""

    clip_score: float
    ref_clip_score: float
    per_image: dict[int, tuple[float, float]]  # (CLIP-S, RefCLIP-S)


Tower = Literal["vision", "text"]
Vectors = Float[np.ndarray, "n e"]


class ClipFiles:
    """The Hugging Face directory of a CLIP or of its like (`families.registry.SCORERS`). Only
    `load` reads weights or touches a device.

    Attributes:
      path, config: the directory and its configuration.
      kind: which score it is used for: CLIPScore, or PAC-S.
      towers: how its family embeds images and texts.
      preprocess, tokenize: its own image preprocessing and tokenizer.
      fingerprint: hash of the weights.
      width: of the embeddings.

    Raises:
      UserError: the directory is not of such a network, or lacks its tokenizer or preprocessor, or
        its tokenizer is another model's.
    """

    def __init__(self, directory: str | os.PathLike[str], kind: Kind = CLIP):
        self.kind = kind
        self.path = resolve(directory)
        self.towers = two_towers(self.path)
        self.preprocess = Preprocessor.from_hf(self.path)
        self.config = self.towers.whole.read_config(self.path)
        self.width = self.towers.width(self.config)
        self.tokenize = self.towers.tokenizer(self.path, self.config)
        self.fingerprint = weights_fingerprint(self.path)
        if self.tokenize.vocab_size > (rows := self.towers.vocab_size(self.config)):
            raise UserError(
                f"{self.path}: its tokenizer has {self.tokenize.vocab_size} ids, but the model "
                f"only {rows}; put the tokenizer of that {self.towers.what} there"
            )

    @property
    def signature(self) -> str:
        """What has to agree for two values to be comparable. Captions are embedded as written, not
        as PTB words, and follow the prompt."""
        weights = self.fingerprint.removeprefix("sha256:")[:12]
        what = self.towers.what.lower()
        kind = self.kind
        told = f"w{kind.weight!r},prompt={kind.prompt.strip()!r}"
        return f"{kind.key}[{told},raw,{what}={weights}]"

    def structure(self, tower: Tower) -> Structure[Any]:
        """What one of the two towers is: `structure.merge(params).embed(inputs)`."""
        family, config = self._family(tower)
        return family.structure(config, "float32")

    def load(self, tower: Tower, mesh: Mesh | None = None) -> Params:
        """Its parameters, in their shards; nothing of the other tower is read."""
        (family, config), like = self._family(tower), self.structure(tower)
        return family.load_params(like.shapes, like.logical_axes, config, self.path, mesh=mesh)

    def _family(self, tower: Tower) -> tuple[Family, Any]:
        family, part = self.towers.towers[tower]
        return family, part(self.config)

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, L] of captions, each after the prompt; too long ones are truncated."""
        return self.tokenize([self.kind.prompt + text for text in texts])


class ClipScorer:
    """A CLIP or its like from a Hugging Face directory, with its own tokenizer and preprocessing.

    Embeds in batches of one shape: each tower is compiled once, and loaded when first needed.

    Raises:
      UserError: see `ClipFiles`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | ClipFiles,
        *,
        batch_size: int = 64,
        kind: Kind = CLIP,
    ):
        read = isinstance(directory, ClipFiles)
        self.files = directory if read else ClipFiles(directory, kind)
        self.batch_size = batch_size
        self.fingerprint, self.signature = self.files.fingerprint, self.files.signature
        self._tower = functools.cache(functools.partial(_embedding, self.files))

    def image_features(self, images: Iterable[Any]) -> Vectors:
        """What the projection makes of images, not normalised: for sums of them."""
        rows = map(self.files.preprocess, images)
        return self._embed(self._tower("vision", normalise=False), rows, None)

    def embed_images(self, images: Iterable[Any], bar: progress | None = None) -> Vectors:
        """Unit vectors of images: encoded bytes, paths, PIL images or uint8 arrays [H,W,3]."""
        return self._embed(self._tower("vision"), map(self.files.preprocess, images), bar)

    def embed_texts(self, texts: Sequence[str], bar: progress | None = None) -> Vectors:
        """Unit vectors of captions, each after the prompt; too long ones are truncated."""
        size = self.batch_size
        parts = (texts[start : start + size] for start in range(0, len(texts), size))
        rows = (row for part in parts for row in self.files.tokens(part))
        return self._embed(self._tower("text"), rows, bar)

    def _embed(
        self, tower: Callable[[Array], Array], rows: Iterable[np.ndarray], bar: progress | None
    ) -> Vectors:
        found: list[np.ndarray] = []
        rows = iter(rows)
        while batch := list(itertools.islice(rows, self.batch_size)):
            # The last one is padded by repetition: a batch of another size would compile again.
            padded = np.stack(batch + batch[-1:] * (self.batch_size - len(batch)))
            out = np.asarray(tower(jnp.asarray(padded)))
            found.append(out[: len(batch)])
            if bar is not None:
                bar.update(len(batch))
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

        n_texts = len(predictions) + sum(len(references[i]) for i in predictions)
        kind = self.files.kind
        with progress(len(predictions) + n_texts, desc=kind.key, unit="embeddings") as bar:
            image_ne = self.embed_images(content(), bar)
            caption_ne = self.embed_texts([predictions[i] for i in order], bar)
            flat = self.embed_texts([text for i in order for text in references[i]], bar)
        ends = np.cumsum([len(references[i]) for i in order])
        reference_nre = np.split(flat, ends[:-1])
        first = clip_score(image_ne, caption_ne, kind)
        second = ref_clip_score(image_ne, caption_ne, reference_nre, kind)
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        each = dict(zip(order, pairs, strict=True))
        return ClipScores(float(np.mean(first)), float(np.mean(second)), each)


def _embedding(
    files: ClipFiles, tower: Tower, *, normalise: bool = True
) -> Callable[[Array], Array]:
    structure = files.structure(tower)

    def embed(params: Params, x: Array) -> Array:
        vectors = structure.merge(params).embed(x)
        return unit(vectors) if normalise else vectors

    return functools.partial(jax.jit(embed), files.load(tower))


def independence_warning(
    fingerprint: str, run: Mapping[str, Any], score: str = CLIP.key
) -> str | None:
    """Why a score by this CLIP says little about the captioner of `run.json`; None if it does."""
    encoder, reward = run.get("base", {}).get("encoder", {}), run.get("reward_signature") or ""
    if encoder.get("fingerprint") == fingerprint:
        part = f"is the captioner's own encoder ({encoder.get('path')})"
    elif fingerprint.removeprefix("sha256:")[:8] in reward:
        part = f"was also part of the reward ({reward})"
    else:
        return None
    fix = "give another one with --clip=HF_DIR" if score == CLIP.key else "give another one"
    return f"{score} is not independent: the CLIP that scores {part}; {fix}"
