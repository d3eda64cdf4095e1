"""CLIPScore as a reward: 2.5 max(cos(image, caption), 0) by a frozen CLIP of its own; or PAC-S,
with 2 for 2.5, by the CLIP of that.

The images of the training split are embedded once, before the first step. In a step the callback
turns captions into the CLIP's token ids and looks up the images' embeddings; the text tower runs on
the devices, inside the step, on parameters that are an argument of it; no other part of the CLIP is
kept.

`2.0*clip_score + cider_d` is the mixture of Cho et al. ("Fine-grained Image Captioning with CLIP
Reward", 2022, as their code has it). Score the result with another CLIP: the one that rewarded is
not independent any more (`scorers.clip.independence_warning`).
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from har_jax.arrays import read_npy
from har_jax.data.dataset import Split
from har_jax.errors import UserError
from har_jax.files import write_bytes
from har_jax.ids import read_number
from har_jax.metrics.embedding_scores import CLIP, Kind, clip_score
from har_jax.models.encoders.clip import unit
from har_jax.models.functional import Params
from har_jax.progress import progress
from har_jax.rewards.contract import Ended, ImageIds, Texts, Values, check_captions
from har_jax.scorers.clip import ClipFiles, ClipScorer
from har_jax.types import Array, Float, Int


class ClipScoreReward:
    """See the module's docstring; a `DeviceReward` and a `LoadedReward` of `rewards.contract`.

    Making one touches no device. `load` does, and must have been called before a step runs.

    Args:
      directory: a CLIP or a SigLIP in Hugging Face's layout.
      images: the split whose images are captioned.
      kind: CLIPScore or PAC-S.
      batch_size: images (or texts) embedded at a time, outside of steps.

    Raises:
      UserError: see `scorers.clip.ClipFiles`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        images: Split,
        *,
        batch_size: int = 64,
        kind: Kind = CLIP,
    ):
        self._files = ClipFiles(directory, kind)
        self._split = images
        self._batch_size = batch_size
        self._row = {image_id: row for row, image_id in enumerate(images.ids)}
        self._vectors: Float32[np.ndarray, "N e"] | None = None
        self._text = self._files.structure("text")
        self.signature = self._files.signature

    @functools.cached_property
    def cache_name(self) -> str:
        """The file that holds the embeddings of these images by this CLIP."""
        digest = hashlib.sha256(self._files.fingerprint.encode())
        digest.update(self._files.preprocess.fingerprint.encode())
        digest.update(np.asarray(self._split.ids, np.int64).tobytes())
        contents = self._split.listing.contents
        if contents is None:  # the records' number and bytes stand in for their digests
            contents = [(self._split.directory / "dataset_info.json").read_text()]
        digest.update("\n".join(contents).encode())
        return f"image_embeddings.{digest.hexdigest()[:16]}.npy"

    def load(self, mesh: Mesh | None, folder: str | os.PathLike[str] | None = None) -> Params:
        """`look`; returns the text tower, in its shards."""
        self.look(folder)
        vars(self).pop("_scorer", None)  # the vision tower goes before the other one comes
        return self._files.load("text", mesh)

    def look(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Embeds the images, or reads what `save` left in `folder`. Every process embeds all of
        them: it does not know which it will draw."""
        path = None if folder is None else pathlib.Path(folder, self.cache_name)
        shape = (len(self._split), self._files.width)
        vectors = _read(path, shape)
        if vectors is None:
            desc = f"images for {self._files.kind.part}"
            with progress(len(self._split), desc=desc, unit="images") as bar:
                images = (example.image for example in self._split)
                vectors = self._scorer.embed_images(images, bar).astype(np.float32)
        self._vectors = vectors

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Keeps the embeddings for the next `load`."""
        path = pathlib.Path(folder, self.cache_name)
        if self._vectors is not None and not path.exists():
            file = io.BytesIO()
            np.save(file, self._vectors, allow_pickle=False)
            write_bytes(path, file.getvalue())

    def shapes(self, batch: int, rows: int) -> Sequence[tuple[tuple[int, ...], type]]:
        """Token ids [B,R,L] and image embeddings [B,E]."""
        length, width = self._files.tokenize.context_length, self._files.width
        return [((batch, rows, length), np.int32), ((batch, width), np.float32)]

    def prepare(self, image_ids: ImageIds, captions: Texts) -> tuple[np.ndarray, np.ndarray]:
        """See `rewards.contract.DeviceReward`.

        Raises:
          UserError: an image that is not of the split.
        """
        assert self._vectors is not None, "load() was not called"
        check_captions(captions)
        tokens = self._files.tokens([text for group in captions for text in group])
        shape = (len(captions), -1, tokens.shape[-1])
        return tokens.reshape(shape), self._vectors[self._rows(image_ids)]

    def in_jit(
        self,
        params: Mapping[str, Array],
        tokens_brl: Int[Array, "B R L"],
        images_be: Float[Array, "B E"],
    ) -> Float[Array, "B R"]:
        """See `rewards.contract.DeviceReward`."""
        b, r, length = tokens_brl.shape
        texts = unit(self._text.merge(params).embed(tokens_brl.reshape(b * r, length)))
        cosines = jnp.einsum("bre,be->br", texts.reshape(b, r, -1), images_be)
        return self._files.kind.weight * jnp.maximum(cosines, 0.0)

    def __call__(self, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values:
        """See `rewards.contract.Reward`; not inside a callback.

        Raises:
          UserError: an image that is not of the split.
        """
        check_captions(captions)
        rows = self._rows(image_ids)
        images, known = (self._split[row].image for row in rows), self._vectors
        looks = self._scorer.embed_images(images) if known is None else known[rows]
        looks = np.repeat(looks, ended.shape[1], axis=0)
        texts = self._scorer.embed_texts([text for group in captions for text in group])
        return clip_score(looks, texts, self._files.kind).reshape(ended.shape).astype(np.float32)

    def _rows(self, image_ids: ImageIds) -> list[int]:
        try:
            return [self._row[read_number(image_id)] for image_id in image_ids]
        except KeyError as error:
            raise UserError(
                f"{self._files.kind.part} has no image {error.args[0]}: it knows the "
                f"{len(self._row)} images of {self._split.name!r} in {self._split.directory}"
            ) from None

    @functools.cached_property
    def _scorer(self) -> ClipScorer:
        return ClipScorer(self._files, batch_size=self._batch_size)


def _read(path: pathlib.Path | None, shape: tuple[int, int]) -> np.ndarray | None:
    """What `save` wrote; None where there is nothing, or nothing whole."""
    try:
        vectors = None if path is None else read_npy(path, "vectors")
    except UserError:
        return None
    fits = vectors is not None and vectors.shape == shape and vectors.dtype == np.float32
    return vectors if fits else None
