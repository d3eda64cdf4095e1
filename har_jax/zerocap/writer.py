"""ZeroCap as a `Writer`: a stream of images in, their captions out, in batches of one size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np

from har_jax.data.protocols import Images, Written
from har_jax.errors import UserError
from har_jax.zerocap.captioner import ZeroCap


@dataclasses.dataclass(frozen=True)
class ZeroCapWriter:
    """See the module's docstring; a `data.protocols.Writer`.

    An image is written about alike whatever stands beside it: the sampled method draws by a key
    made of `seed` and the image's id.
    """

    zerocap: ZeroCap
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**32")

    def write(self, images: Images) -> Iterator[Written]:
        """A caption for each image, in order.

        Raises:
          UserError: an image does not decode.
        """
        size, start = self.zerocap.batch_size, jax.random.key(self.seed)
        numbers = iter(range(len(images)))
        while batch := list(itertools.islice(numbers, size)):
            # The last one is padded by repetition: a batch of another size would compile again.
            padded = batch + batch[-1:] * (min(size, len(images)) - len(batch))
            features_be = self.zerocap.features([images.read(i) for i in batch])
            features_be = features_be[np.array(padded) - batch[0]]
            keys = [jax.random.fold_in(start, images.ids[i] % 2**32) for i in padded]
            yield from self.zerocap.write(features_be, keys)[: len(batch)]
