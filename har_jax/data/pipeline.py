"""Batches for training and evaluation: one image, all its references, `[B, R, T]`.

The order of training is one endless stream, fixed by the seed: epoch after epoch of all images,
each shuffled anew. A global batch is the next stretch of that stream, and every process
takes its own rows of it. So the examples of step n do not depend on how many processes there are,
each image is seen once per epoch by exactly one of them, and the state is a single number. Grain
iterates over the step numbers, in threads that work ahead, and keeps that state.

Captions are tokenised once, when the pipeline is opened. Small datasets keep their decoded pixels
(as bytes, before normalisation) in memory. Only threads prefetch; there are no worker processes.

With a feature cache (`data.features`) the batches carry `features` [B,S,Dv] where they would carry
`image`, and no image is decoded; `visual` gives whichever of the two is there.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from har_jax.data.dataset import Split
from har_jax.data.features.cache import FeatureCache, ImageFeatures, digest_of
from har_jax.data.images import Preprocessor
from har_jax.data.protocols import Images
from har_jax.errors import UserError
from har_jax.text.tokenizer import CaptionTokenizer

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
ArrayT = TypeVar("ArrayT")

CACHE_BYTES = 2 << 30
"""Decoded pixels are kept up to here; a larger dataset is decoded anew every epoch."""

_ENDLESS = 2**48  # steps
_ORDER, _SUBSET = 1, 2  # keep the draws of images and of captions apart


def visual(batch: Mapping[str, ArrayT]) -> ArrayT:
    """What `Captioner.encode` takes: a batch's features [B,S,Dv] if it has some, or its pixels."""
    return batch["features"] if "features" in batch else batch["image"]


class TrainBatches:
    """An endless, resumable iterator over this process's batches.

    Each batch holds

        image     float32 [B, H, W, 3]; or, of a cache, features [B, S, Dv] as they are stored
        image_id  int64 [B]
        tokens    int32 [B, R, T]   captions, EOS included, padded with EOS
        lengths   int32 [B, R]      EOS included; 0 marks a row that is padding

    An image with more than R captions shows R of them, others in the next epoch; one with fewer has
    rows of length 0. A caption of more than T tokens is cut, and then has no EOS.

    Attributes:
      captions: the encoded captions, with the count of those that were cut.
      steps_per_epoch: global batches per pass over the images (not always whole).
    """

    def __init__(
        self,
        split: Split,
        preprocessor: Preprocessor | None,
        tokenizer: CaptionTokenizer,
        *,
        batch_size: int,
        captions_per_image: int,
        max_tokens: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        cache_images: bool = True,
        cache_bytes: int = CACHE_BYTES,
        features: FeatureCache | None = None,
    ):
        """
        Args:
          batch_size: B, images per process.
          captions_per_image: R.
          max_tokens: T.
          process_index, process_count: which rows of the global batch of B * process_count are
            taken.
          features: takes the place of images and their preprocessing.

        Raises:
          UserError: a size that makes no sense, an empty split, or one that the cache does not
            cover.
        """
        n, global_size = len(split), batch_size * process_count
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("captions_per_image", captions_per_image, 1),
            ("max_tokens", max_tokens, 2),
            ("process_count", process_count, 1),
            ("the number of images", n, 1),
        ):
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index is {process_index} of {process_count} processes")
        self._looks = _looks(split, preprocessor, features, cache_bytes if cache_images else 0)
        self.captions = EncodedCaptions(split.captions, tokenizer, max_tokens)
        self._image_ids = np.asarray(split.ids, np.int64)
        self._rows, self._seed = captions_per_image, seed
        self.steps_per_epoch = n / global_size
        # What the meaning of a state depends on; process count and index are free to change.
        self._identity = {"images": n, "global_batch_size": global_size, "seed": seed}
        self._order = Order(n, seed)
        self._mine = process_index * batch_size + np.arange(batch_size)
        self._global_size = global_size
        self._iterator = ahead(_ENDLESS, self._load, 2)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands, JSON-able: the next batch is the one after the last returned."""
        return {"pipeline": self._identity, "grain": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, in this or another number of processes.

        Raises:
          UserError: the state is of other data, another seed or another global batch size.
        """
        if state.get("pipeline") != self._identity:
            raise UserError(
                f"the data state is of {state.get('pipeline')}, this run has {self._identity}; "
                "resume with the same data, seed and global batch size"
            )
        self._iterator.set_state(state["grain"])

    def _load(self, step: int) -> Batch:
        """This process's rows of global batch number `step`."""
        rows = self._order.take(step * self._global_size + self._mine)
        indices = rows[:, 1]
        tokens, lengths = self.captions.take(rows, self._rows, self._seed)
        seen = {_key(self._looks): self._looks.take(indices), "image_id": self._image_ids[indices]}
        return seen | {"tokens": tokens, "lengths": lengths}


class Order:
    """The endless stream of examples: a permutation of all of them per epoch. Thread-safe.

    Not Grain's `shuffle`: it walks a cipher's cycle for every index, 0.1 to 0.7 ms each where there
    are few examples, which for 80 images is 20 ms a batch.
    """

    def __init__(self, count: int, seed: int):
        self._count = count

        @functools.lru_cache(maxsize=4)  # batches straddle epochs, and threads work ahead
        def permutation(epoch: int) -> Int64[np.ndarray, " N"]:
            # RandomState's stream is frozen, so the order outlives NumPy's versions.
            key = [seed % 2**32, _ORDER, epoch % 2**32]
            return np.random.RandomState(key).permutation(count)

        self._permutation = permutation

    def take(self, positions: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, "B 2"]:
        """(epoch, example) at these positions of the stream."""
        epochs, places = np.divmod(positions, self._count)
        rows = np.stack([epochs, places], axis=1)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here, 1] = self._permutation(int(epoch))[places[here]]
        return rows


def eval_batches(
    images: Images,
    preprocessor: Preprocessor | None,
    *,
    batch_size: int,
    features: FeatureCache | None = None,
    captions: tuple[EncodedCaptions, int] | None = None,
) -> Iterator[Batch]:
    """One pass in the order of the images: `image` [B,H,W,3], `image_id` [B], `valid` bool [B].

    The last batch is filled up by repeating its last image, with `valid` False there. With
    `features` there is `features` [B,S,Dv] in the place of `image`.

    Args:
      captions: (the captions of the images, R): adds `tokens` [B,R,T] and `lengths` [B,R] as in
        `TrainBatches`, with length 0 where `valid` is False. Of an image with more than R captions
        the same R are given in every pass.

    Raises:
      UserError: `batch_size` is not positive, the cache lacks an image, or an image does not
        decode.
    """
    image_ids = np.asarray(images.ids, np.int64)
    looks = _looks(images, preprocessor, features, 0)

    def load(indices: Int64[np.ndarray, " B"], valid: Bool[np.ndarray, " B"]) -> Batch:
        batch = {_key(looks): looks.take(indices), "image_id": image_ids[indices], "valid": valid}
        if captions is not None:
            encoded, count = captions
            rows = np.stack([np.zeros_like(indices), indices], axis=1)  # all of epoch 0
            tokens, lengths = encoded.take(rows, count, seed=0)
            batch |= {"tokens": tokens, "lengths": np.where(valid[:, None], lengths, 0)}
        return batch

    return _in_order(0, len(images), batch_size, load)


def image_batches(
    images: Images, preprocessor: Preprocessor, first: int, stop: int, *, batch_size: int
) -> Iterator[Batch]:
    """The images first..stop-1: `image`, `valid` as `eval_batches`, and `digest` uint64 [B] of
    the encoded bytes (`features.digest_of`)."""
    pixels = Pixels(images, preprocessor, cache_bytes=0)

    def load(indices: Int64[np.ndarray, " B"], valid: Bool[np.ndarray, " B"]) -> Batch:
        normalised, digests = pixels.take_with_digests(indices)
        return {"image": normalised, "digest": digests, "valid": valid}

    return _in_order(first, stop, batch_size, load)


def _in_order(
    first: int, stop: int, batch_size: int, load: Callable[[np.ndarray, np.ndarray], Batch]
) -> Iterator[Batch]:
    """`load(indices, valid)` of one batch after the other, some ahead, in threads."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")

    def numbered(number: int) -> Batch:
        wanted = first + number * batch_size + np.arange(batch_size)
        return load(np.minimum(wanted, stop - 1), wanted < stop)

    return ahead(-(-(stop - first) // batch_size), numbered, 1)


def ahead(count: int, load: Callable[[int], Any], buffered: int) -> Any:
    """Grain's iterator over `load(0)`, ..., `load(count - 1)`: `buffered` ahead per thread."""
    import grain

    threads = min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered * threads)
    return iter(grain.MapDataset.range(count).map(load).to_iter_dataset(options))


def _looks(
    images: Images,
    preprocessor: Preprocessor | None,
    features: FeatureCache | None,
    cache_bytes: int,
) -> Pixels | ImageFeatures:
    """Where the batches take from what the captioner sees."""
    if features is not None:
        return features.of(images)
    if preprocessor is None:
        raise UserError(
            "this captioner was trained on imported features and has no encoder of images; give "
            "the features of these images (config.data.features)"
        )
    return Pixels(images, preprocessor, cache_bytes=cache_bytes)


def _key(looks: Pixels | ImageFeatures) -> str:
    return "features" if isinstance(looks, ImageFeatures) else "image"


class Pixels:
    """Preprocessed images, read as they are asked for. Thread-safe.

    Args:
      cache_bytes: decoded pixels (uint8) are kept if all of them fit in so many bytes.
    """

    def __init__(self, images: Images, preprocessor: Preprocessor, *, cache_bytes: int):
        self._images, self._preprocessor = images, preprocessor
        self._name_of = getattr(images, "name_of", lambda i: f"of id {images.ids[i]}")
        self.size = preprocessor.output_size
        height, width = self.size
        self._cache: np.ndarray | None = None
        if len(images) * height * width * 3 <= cache_bytes:
            self._cache = np.empty((len(images), height, width, 3), np.uint8)
            self._held = np.zeros(len(images), bool)
        self._lock = threading.Lock()

    def take(self, indices: Int64[np.ndarray, " B"]) -> Float32[np.ndarray, "B H W 3"]:
        """Normalised pixels of these examples."""
        if self._cache is None:
            wanted, rows = np.unique(indices, return_inverse=True)  # padding repeats an image
            pixels = np.stack(list(map(self._read, wanted.tolist())))
            return self._preprocessor.normalise(pixels[rows])
        for i in indices[~self._held[indices]].tolist():
            image = self._read(i)
            with self._lock:  # two threads may have read the same image; both write the same
                self._cache[i] = image
                self._held[i] = True
        return self._preprocessor.normalise(self._cache[indices])

    def take_with_digests(
        self, indices: Int64[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B H W 3"], UInt64[np.ndarray, " B"]]:
        """Normalised pixels, and digests of the bytes that they were decoded from."""
        wanted, rows = np.unique(indices, return_inverse=True)
        encoded = [self._images.read(i) for i in wanted.tolist()]
        digests = np.array([digest_of(image) for image in encoded], np.uint64)
        pixels = np.stack(list(map(self._decode, wanted.tolist(), encoded)))
        return self._preprocessor.normalise(pixels[rows]), digests[rows]

    def _read(self, index: int) -> np.ndarray:
        return self._decode(index, self._images.read(index))

    def _decode(self, index: int, image: bytes) -> np.ndarray:
        return self._preprocessor.pixels(image, name=self._name_of(index))


class EncodedCaptions:
    """All captions of a split as ids, tokenised once, in one flat array.

    Attributes:
      count: captions in all.
      truncated: how many were longer than `max_tokens` and lost their end and EOS.
    """

    def __init__(
        self, captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer, max_tokens: int
    ):
        self.max_tokens, self._pad = max_tokens, tokenizer.eos_id
        encoded = tokenizer.encode_batch([text for texts in captions for text in texts])
        self.count = len(encoded)
        self.truncated = sum(len(ids) > max_tokens for ids in encoded)
        if self.truncated:
            log.warning(
                f"{self.truncated} of {self.count} captions have more than max_tokens={max_tokens} "
                "tokens: they are cut there and have no end of sentence; the longest has "
                f"{max(map(len, encoded))}"
            )
        self._ids = np.full((self.count, max_tokens), self._pad, np.int32)
        self._lengths = np.zeros(self.count, np.int32)
        for row, ids in enumerate(encoded):
            kept = ids[:max_tokens]
            self._ids[row, : len(kept)] = kept
            self._lengths[row] = len(kept)
        self._first = np.cumsum([0, *map(len, captions)])

    @property
    def mean_length(self) -> float:
        """Tokens per caption, EOS included, at most `max_tokens`."""
        return float(self._lengths.mean())

    def take(
        self, rows: Int64[np.ndarray, "B 2"], count: int, seed: int
    ) -> tuple[Int32[np.ndarray, "B R T"], Int32[np.ndarray, "B R"]]:
        """(tokens, lengths) of `count` captions of each (epoch, example)."""
        tokens = np.full((len(rows), count, self.max_tokens), self._pad, np.int32)
        lengths = np.zeros((len(rows), count), np.int32)
        for b, (epoch, example) in enumerate(rows):
            first, end = int(self._first[example]), int(self._first[example + 1])
            if end - first <= count:
                chosen = np.arange(first, end)
            else:  # RandomState's stream is frozen, so the choice outlives NumPy's versions
                key = [seed % 2**32, _SUBSET, int(epoch) % 2**32, int(example)]
                draws = np.random.RandomState(key).random_sample(end - first)
                chosen = first + np.sort(np.argsort(draws)[:count])
            tokens[b, : len(chosen)] = self._ids[chosen]
            lengths[b, : len(chosen)] = self._lengths[chosen]
        return tokens, lengths
