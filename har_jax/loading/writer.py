"""A captioner as a `Writer`: a stream of images in, their captions out, in batches of one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from har_jax.data.features.cache import FeatureCache
from har_jax.data.pipeline import eval_batches, visual
from har_jax.data.protocols import Images, Written
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.loading.loaded import LoadedCaptioner, batch_seed


@dataclasses.dataclass(frozen=True)
class CaptionerWriter:
    """See the module's docstring; a `data.protocols.Writer`.

    Attributes:
      seed: of sampling; every batch draws with one of its own.
      batch_size: images at a time, rounded up to what the mesh divides; None: as configured.
      features: of the captioner's encoder, by image id; then no image is read.
    """

    captioner: LoadedCaptioner
    settings: DecodeSettings = dataclasses.field(default_factory=DecodeSettings)
    seed: int = 0
    batch_size: int | None = None
    features: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be at least 0")
        if self.settings.num_return != 1:
            raise UserError(
                f"num_return is {self.settings.num_return}, but a writer gives each image one "
                "caption; leave num_return out"
            )

    def write(self, images: Images) -> Iterator[Written]:
        """A caption for each image, in order.

        Raises:
          UserError: an image does not decode, or the cache lacks one.
        """
        captioner = self.captioner
        size = captioner.batch_size_for(len(images), self.batch_size)
        batches = eval_batches(
            images, captioner.preprocessor, batch_size=size, features=self.features
        )
        eos_ids = captioner.blueprint.config.eos_ids
        for number, batch in enumerate(batches):
            seen = visual(batch)
            tokens, lengths = captioner.run_batch(
                seen, self.settings, batch_seed(self.seed, number)
            )
            last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
            ended = np.isin(last, eos_ids) & (lengths > 0)
            texts = captioner.decode_texts(tokens, lengths)
            for text, whole, valid in zip(texts, ended.tolist(), batch["valid"], strict=True):
                if valid:
                    yield Written(text, whole)
