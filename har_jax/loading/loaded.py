"""A captioner that is ready to write: what `load_captioner` gives.

    texts = captioner.generate(["photo.jpg"], method="beam")
    logp  = captioner.score(["photo.jpg"], ["a dog", "a cat"])

and for other JAX programs: `captioner.params`, `captioner.caption_fn()`, a pure function of them,
and `captioner.structure`, which makes a `har_jax.models.captioner.Captioner` of them
(docs/library.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.config import Config
from har_jax.data.images import Preprocessor
from har_jax.decoding.loop import Captions
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.foreign import shortened
from har_jax.loading import visual
from har_jax.loading.blueprint import Blueprint
from har_jax.loading.programs import Programs
from har_jax.loading.texts import Caption, Texts
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.settings import Count, Tokens, checked_number
from har_jax.sharding import divisible
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.types import AnyArray

CaptionFn = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
CaptionsFn = Callable[[Params, jax.Array, jax.Array], Captions]


@dataclasses.dataclass(repr=False, eq=False)
class LoadedCaptioner:
    """A captioner with its parameters, tokenizer and image preprocessing."""

    blueprint: Blueprint
    params: Params
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor | None  # None: it reads imported features, not images
    mesh: Mesh
    config: Config
    run: dict[str, Any] = dataclasses.field(default_factory=dict)  # run.json
    step: int = 0
    source: str = ""  # what it was loaded from, for its repr

    @property
    def structure(self) -> Structure[Captioner]:
        """Makes a `Captioner` of parameters (`merge`), and knows their shapes and axes."""
        return self.blueprint.structure

    def __repr__(self) -> str:
        """In a line: where it comes from, its two networks, its size and its devices."""
        config, vision = self.blueprint.config, self.blueprint.config.vision
        networks = f"{vision.model_type if vision else 'features'} -> {config.lm.model_type}"
        count, dtypes = (
            sum(x.size for x in self.params.values()),
            {x.dtype.name: 0 for x in self.params.values()},
        )
        mesh = " x ".join(f"{axis}={n}" for axis, n in self.mesh.shape.items())
        source = f"{self.source!r}, step {self.step}" if self.run else repr(self.source)
        return (
            f"LoadedCaptioner({source}: {networks}, {count:,} parameters in {'/'.join(dtypes)}, "
            f"mesh {mesh})"
        )

    # ---------------------------------------------------------------------------- captions

    @overload
    def generate(self, images: visual.Single, *, method: str = ..., **settings: Any) -> str: ...
    @overload
    def generate(
        self, images: Sequence[Any] | np.ndarray, *, method: str = ..., **settings: Any
    ) -> list[str]: ...
    def generate(
        self,
        images: Any,
        *,
        method: str = "greedy",
        seed: int = 0,
        batch_size: int | None = None,
        return_scores: bool = False,
        **settings: Any,
    ) -> Any:
        """A caption for each image; of a single image, the caption itself.

        A single image is a path, encoded bytes, a PIL image or a uint8 array `[H,W,3]` of any size.
        Many are a list, an iterator or a generator of those, read batch by batch, or a uint8 array
        `[B,H,W,3]`. Float arrays are ready: `[B,H,W,3]` preprocessed (`self.preprocessor`), and
        `[B,S,Dv]` what the encoder would say (`features`).

        Args:
          method: one of `decoding.settings.METHODS`.
          seed: of sampling.
          batch_size: images at a time, rounded up to what the mesh divides; the last batch is
            padded.
          return_scores: a `loading.texts.Caption` in the place of each text: tokens,
            log-probabilities and score beside it.
          settings: of `decoding.settings.DecodeSettings`: `max_tokens`, `temperature`, `top_k`,
            `top_p`, `beams`, `length_penalty`, `early_stopping`, `num_return`. With `num_return`
            above 1 there is a list of so many captions in the place of each caption.

        Raises:
          UserError: something else was given, an image does not decode, or a setting may not be so.
        """
        how = DecodeSettings.of(method, settings)
        given = self._read(images)
        found: list[Any] = []
        for captions in self._captions(given, how, seed, batch_size):
            shown = [caption if return_scores else caption.text for caption in captions]
            found.append(shown[0] if how.num_return == 1 else shown)
        return found[0] if given.single else found

    def captions(
        self,
        images: Any,
        *,
        method: str = "greedy",
        seed: int = 0,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Iterator[list[Caption]]:
        """Of each image its `num_return` captions, in order, as they are written; arguments as
        `generate`'s. From an endless iterator come endless captions, in the memory of a batch."""
        how = DecodeSettings.of(method, settings)  # refused now, not when the first is asked for
        return self._captions(self._read(images), how, seed, batch_size)

    def _captions(
        self, given: visual.Given, how: DecodeSettings, seed: int, batch_size: int | None
    ) -> Iterator[list[Caption]]:
        eos_ids = self.blueprint.config.eos_ids
        for number, (rows, count) in enumerate(self._batches(given, batch_size)):
            tokens, lengths, logp = self._write(rows, how, batch_seed(seed, number))
            scores = how.score(logp, lengths)
            for b in range(count):
                captions = []
                for row, n, each, score in zip(
                    tokens[b], lengths[b], logp[b], scores[b], strict=True
                ):
                    ids, text = tuple(row[:n].tolist()), self.tokenizer.decode(row[:n].tolist())
                    ended = n > 0 and ids[-1] in eos_ids
                    own = tuple(each[:n].tolist())
                    captions.append(Caption(text, ids, own, float(score), bool(ended)))
                yield captions

    def batch_size_for(self, count: int, wanted: int | None = None) -> int:
        """How many images to caption at a time: what is wanted (or configured), but no more than
        there are, rounded up to what the mesh divides."""
        return divisible(min(wanted or self.config.eval.batch_size, max(1, count)), self.mesh)

    def preprocess(self, images: Any) -> np.ndarray:
        """Images, given in any of `generate`'s ways, as float32 pixels `[B,H,W,3]`; of floats,
        themselves. B is 1 of a single image.

        Raises:
          UserError: an image does not decode, or this captioner reads features only.
        """
        rows = list(self._read(images).rows)
        if not rows:
            raise UserError("no image is given to preprocess; give at least one")
        return np.stack(rows)

    def generate_tokens(
        self, pixels: Any, *, method: str = "greedy", seed: int = 0, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images, preprocessed or not, to token ids int32 `[B,T]`, and lengths `[B]` with EOS;
        images and settings as `generate`'s.

        One jitted call, compiled once per shape and settings. B need not divide by the mesh.
        """
        how = DecodeSettings.of(method, settings)
        rows = self.preprocess(pixels)
        padded = visual.padded(rows, divisible(len(rows), self.mesh))
        tokens, lengths = self.run_batch(padded, how, seed)
        return tokens[: len(rows)], lengths[: len(rows)]

    def run_batch(
        self, pixels: np.ndarray, how: DecodeSettings, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`generate_tokens` of a batch that the mesh divides."""
        _only_one(how)
        tokens, lengths, _ = self._write(pixels, how, seed)
        return np.asarray(tokens[:, 0]), np.asarray(lengths[:, 0])

    def caption_fn(
        self, how: DecodeSettings | None = None, *, method: str = "greedy", **settings: Any
    ) -> CaptionFn:
        """A pure function `(params, images, key) -> (tokens, lengths)` for programs of your own.

        It holds no arrays and no state: `jax.jit` it with whatever stands around it, or call it
        inside `shard_map`. `params` are `self.params`, or others of the same names and shapes;
        images are preprocessed pixels `[B,H,W,3]` (or features `[B,S,Dv]`), and the key is used
        where `method="sample"`. Returns int32 ids `[B,T]` and lengths `[B]`, EOS included, for
        `decode_texts`. On a mesh, call it within `jax.set_mesh(mesh)`.
        """
        how = _only_one(how or DecodeSettings.of(method, settings))
        all_of = self.captions_fn(how)

        def write(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = all_of(params, images, key)
            return found.tokens[:, 0], found.lengths[:, 0]

        return write

    def captions_fn(
        self, how: DecodeSettings | None = None, *, method: str = "greedy", **settings: Any
    ) -> CaptionsFn:
        """`caption_fn` with all that was written: `decoding.loop.Captions` of `num_return` captions
        an image, tokens `[B,R,T]`, lengths `[B,R]` and log-probabilities `[B,R,T]`, which are 0
        after a caption's end."""
        how = how or DecodeSettings.of(method, settings)
        max_tokens = self.config.data.max_tokens if how.max_tokens is None else how.max_tokens
        structure = self.structure
        self.blueprint.config.check_places(max_tokens)

        def write(params: Params, images: jax.Array, key: jax.Array) -> Captions:
            captioner = structure.merge(params)
            cache = captioner.prefill(captioner.project(captioner.encode(images)))
            return how.write(captioner, cache, max_tokens, key)

        return write

    # ------------------------------------------------------------------- texts and features

    def decode_texts(self, tokens: AnyArray, lengths: AnyArray) -> list[Any]:
        """Token ids `[B,T]` with lengths `[B]` to captions, without EOS; of `[B,R,T]` and `[B,R]`,
        a list of R for each image."""
        if np.ndim(tokens) == 3:
            return [self.decode_texts(*of) for of in zip(tokens, lengths, strict=True)]
        return [
            self.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)
        ]

    def encode_texts(
        self, texts: Any, *, max_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texts to token ids int32 and lengths, EOS included: of a list of N texts `[N,T]` and
        `[N]`, of a list with R texts for each image `[B,R,T]` and `[B,R]`. Behind its end a row has
        EOS: mask what is computed of it by its length (`models.logprobs.length_mask`).

        Args:
          max_tokens: T; as in training by default.

        Raises:
          UserError: a text has more tokens, or `texts` is nothing of this kind.
        """
        wanted = Texts.of(texts)
        tokens, lengths = wanted.encoded(self.tokenizer, self._max_tokens(max_tokens))
        return (tokens[0], lengths[0]) if wanted.shared else (tokens, lengths)

    def score(
        self,
        images: Any,
        texts: Any,
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """log P of given texts, float32 `[B,R]` in nats: the sum over a text's tokens and its EOS,
        and over nothing behind it.

        Args:
          images: in any of `generate`'s ways; B is 1 of a single image.
          texts: R texts that every image is asked about, or a list with R texts for each image.
          max_tokens: the most that a text may have, with EOS; as in training by default.
          batch_size: images at a time.

        Raises:
          UserError: a text is longer, images and texts are not as many, or one does not decode.
        """
        given, wanted = self._read(images), Texts.of(texts)
        if given.count is not None:
            wanted.check_count(given.count)
        tokens, lengths = wanted.encoded(
            self.tokenizer, self._max_tokens(max_tokens), shortest=True
        )
        self.blueprint.config.check_places(tokens.shape[-1])
        found: list[np.ndarray] = []
        done = 0
        for rows, count in self._batches(given, batch_size):
            wanted.check_count(done + count, more=True)
            own = slice(None) if wanted.shared else slice(done, done + count)
            found.append(self._programs.score(self.params, rows, tokens[own], lengths[own])[:count])
            done += count
        wanted.check_count(done)
        return np.concatenate([np.zeros((0, tokens.shape[1]), np.float32), *found])

    def features(self, images: Any, *, batch_size: int | None = None) -> np.ndarray:
        """What the encoder says of images, given in any of `generate`'s ways: float32 `[B,S,Dv]`,
        which `generate` and `score` take in the place of the images. B is 1 of a single image."""
        empty = np.zeros((0, *self.blueprint.config.features_shape), np.float32)
        batches = self._batches(self._read(images), batch_size)
        return np.concatenate(
            [
                empty,
                *(self._programs.features(self.params, rows)[:count] for rows, count in batches),
            ]
        )

    # -------------------------------------------------------------------- what all share

    def _write(self, rows: np.ndarray, how: DecodeSettings, seed: int) -> Captions:
        """The captions of a batch that the mesh divides, on the host."""
        return self._programs.write(how, self.captions_fn, self.params, rows, seed)

    def _read(self, images: Any) -> visual.Given:
        return visual.read(images, self.preprocessor, self.blueprint.config.features_shape)

    def _batches(self, given: visual.Given, wanted: int | None) -> Iterator[tuple[np.ndarray, int]]:
        if wanted is not None:
            checked_number("batch_size", wanted, Count)
        size = divisible(wanted or self.config.eval.batch_size, self.mesh)
        return given.batches(size, lambda count: divisible(count, self.mesh))

    def _max_tokens(self, wanted: int | None) -> int:
        if wanted is not None:
            checked_number("max_tokens", wanted, Tokens)
        return wanted or self.config.data.max_tokens

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs(self.blueprint.structure, self.mesh)


def _only_one(how: DecodeSettings) -> DecodeSettings:
    if how.num_return != 1:
        raise UserError(
            f"num_return is {how.num_return}, but one caption of each image is written here; use "
            "captions or generate, or captions_fn in a program of your own"
        )
    return how


def batch_seed(seed: int, number: int) -> int:
    """A seed for batch `number` that no other batch of no other seed shares, as far as 31 bits
    go.

    Raises:
      UserError: no whole number, or one below 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed is {shortened(repr(seed))}; it must be a whole number of at least 0")
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
