"""CLIPScore and RefCLIPScore with a CLIP that scores and does nothing else.

The figures mean something only if that CLIP had no part in training: a captioner looks good to its
own encoder, and better to a CLIP that rewarded it. `independence_warning` compares weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange.families.clip import CLIP_FAMILY, VISION_FAMILY, clip_table
from har_jax.interchange.families.family import Family
from har_jax.interchange.hf_dir import resolve, weights_fingerprint
from har_jax.metrics.clip_score import PROMPT, clip_score, ref_clip_score
from har_jax.models.encoders.clip import CLIPConfig, TextConfig, TextTower
from har_jax.models.functional import Params, Structure
from har_jax.progress import progress
from har_jax.text.tokenizer import ClipTokenizer, load_clip_tokenizer
from har_jax.types import Array, Float


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Means over the images and the values of each, {image id: value}."""

    clip_score: float
    ref_clip_score: float
    per_image: dict[int, tuple[float, float]]  # (CLIP-S, RefCLIP-S)


def unit(vectors: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Rows of length 1, float32."""
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


Tower = Literal["vision", "text"]

# The text tower and the width of its projection, as `VISION_FAMILY` has the other one.
_TEXT_FAMILY: Family[tuple[TextConfig, int]] = Family(
    ("clip",),
    lambda hf: (CLIPConfig.from_hf(hf).text, CLIPConfig.from_hf(hf).projection_dim),
    lambda config: CLIPConfig(text=config[0], projection_dim=config[1]).to_hf(),
    lambda config, rngs, dtype: TextTower(*config, rngs=rngs, dtype=dtype),
    lambda bare: [
        dataclasses.replace(row, path=row.path.removeprefix("text."))
        for row in clip_table()
        if row.path.startswith("text.")
    ],
    lambda config: r"(.*\.)?position_ids|vision_model\..*|visual_projection\..*|logit_scale",
)


class ClipFiles:
    """A CLIP's Hugging Face directory. Only `load` reads weights or touches a device.

    Attributes:
      path, config: the directory and its configuration.
      preprocess, tokenize: its own image preprocessing and tokenizer.
      fingerprint: hash of the weights.

    Raises:
      UserError: the directory is not a CLIP's, lacks its tokenizer or preprocessor, or its
        tokenizer is another model's.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.path = resolve(directory)
        self.preprocess = Preprocessor.from_hf(self.path)
        self.tokenize = load_clip_tokenizer(self.path)
        self.fingerprint = weights_fingerprint(self.path)
        self.config = CLIP_FAMILY.read_config(self.path)
        _check_tokenizer(self.path, self.config.text, self.tokenize)

    @property
    def signature(self) -> str:
        """What has to agree for two values to be comparable. Captions are embedded as written, not
        as PTB words, and follow the prompt."""
        weights = self.fingerprint.removeprefix("sha256:")[:12]
        return f"CLIPScore[w2.5,prompt={PROMPT.strip()!r},raw,clip={weights}]"

    def structure(self, tower: Tower) -> Structure[Any]:
        """What one of the two towers is: `structure.merge(params).embed(inputs)`."""
        family, config = self._family(tower)
        return family.structure(config, "float32")

    def load(self, tower: Tower, mesh: Mesh | None = None) -> Params:
        """Its parameters, in their shards; nothing of the other tower is read."""
        family, config = self._family(tower)
        like = self.structure(tower)
        return family.load_params(like.shapes, like.logical_axes, config, self.path, mesh=mesh)

    def _family(self, tower: Tower) -> tuple[Family, tuple]:
        config = self.config
        if tower == "vision":
            return VISION_FAMILY, (config.vision, config.projection_dim)
        return _TEXT_FAMILY, (config.text, config.projection_dim)

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, L] of captions, each after the prompt; too long ones are truncated."""
        return self.tokenize([PROMPT + text for text in texts])


class ClipScorer:
    """A CLIP from a Hugging Face directory, with its own tokenizer and image preprocessing.

    Embeds in batches of one shape: each tower is compiled once, and loaded when first needed.

    Raises:
      UserError: see `ClipFiles`.
    """

    def __init__(self, directory: str | os.PathLike[str] | ClipFiles, *, batch_size: int = 64):
        self.files = directory if isinstance(directory, ClipFiles) else ClipFiles(directory)
        self.batch_size = batch_size
        self.fingerprint, self.signature = self.files.fingerprint, self.files.signature

    @functools.cached_property
    def _vision(self) -> Callable[[Array], Array]:
        return self._unit_vectors("vision")

    @functools.cached_property
    def _text(self) -> Callable[[Array], Array]:
        return self._unit_vectors("text")

    def _unit_vectors(self, tower: Tower) -> Callable[[Array], Array]:
        structure = self.files.structure(tower)
        embed = jax.jit(lambda params, x: unit(structure.merge(params).embed(x)))
        return functools.partial(embed, self.files.load(tower))

    def embed_images(
        self, images: Iterable[Any], bar: progress | None = None
    ) -> Float[np.ndarray, "n e"]:
        """Unit vectors of images: encoded bytes, paths or PIL images."""
        return self._embed(self._vision, map(self.files.preprocess, images), bar)

    def embed_texts(
        self, texts: Sequence[str], bar: progress | None = None
    ) -> Float[np.ndarray, "n e"]:
        """Unit vectors of captions, each after the prompt; too long ones are truncated."""
        return self._embed(self._text, self._tokens(texts), bar)

    def _tokens(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), self.batch_size):
            yield from self.files.tokens(texts[start : start + self.batch_size])

    def _embed(
        self,
        tower: Callable[[Array], Array],
        rows: Iterable[np.ndarray],
        bar: progress | None,
    ) -> Float[np.ndarray, "n e"]:
        found: list[np.ndarray] = []
        for batch in _batches(rows, self.batch_size):
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
        with progress(len(predictions) + n_texts, desc="CLIPScore", unit="embeddings") as bar:
            image_ne = self.embed_images(content(), bar)
            caption_ne = self.embed_texts([predictions[i] for i in order], bar)
            flat = self.embed_texts([text for i in order for text in references[i]], bar)
        ends = np.cumsum([len(references[i]) for i in order])
        reference_nre = np.split(flat, ends[:-1])
        first = clip_score(image_ne, caption_ne)
        second = ref_clip_score(image_ne, caption_ne, reference_nre)
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        return ClipScores(
            float(np.mean(first)), float(np.mean(second)), dict(zip(order, pairs, strict=True))
        )


def _check_tokenizer(path: pathlib.Path, text: TextConfig, tokenizer: ClipTokenizer) -> None:
    """The text tower reads its answer off the end-of-text token. Where the tokenizer writes
    another one, every caption has the same embedding, and CLIPScore is a constant that looks like
    a value."""
    # 2: configs from before transformers' PR #24773, for which the tower takes the highest id.
    legacy = text.eos_token_id == 2 and tokenizer.eos_id == tokenizer.vocab_size - 1
    if tokenizer.eos_id != text.eos_token_id and not legacy:
        raise UserError(
            f"{path}: its tokenizer ends texts with id {tokenizer.eos_id}, but text_config."
            f"eos_token_id in config.json is {text.eos_token_id}; put the tokenizer of that CLIP "
            "there, or correct the id"
        )
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids, but the model only "
            f"{text.vocab_size}; put the tokenizer of that CLIP there"
        )


def _batches(rows: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


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
