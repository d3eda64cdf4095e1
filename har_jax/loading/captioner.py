"""Captioners from a run, or from Hugging Face directories: built in their shards, ready to write.

    captioner = har_jax.load_captioner("runs/scst", mesh=mesh)
    texts = captioner.generate(["photo.jpg"], method="beam")

and for other JAX programs: `captioner.params`, `captioner.caption_fn()`, a pure function of them,
and `captioner.structure`, which makes a `har_jax.models.captioner.Captioner` of them
(docs/library.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.config import Config, LoraConfig
from har_jax.data.images import Preprocessor
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.loading import sources
from har_jax.loading.blueprint import Blueprint
from har_jax.loading.sources import PathLike
from har_jax.models import lora
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.settings import tell_renamed
from har_jax.sharding import RULES, Rules, batch_sharding, divisible, make_mesh, replicated
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.types import AnyArray

CaptionFn = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass
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

    @property
    def structure(self) -> Structure[Captioner]:
        """Makes a `Captioner` of parameters (`merge`), and knows their shapes and axes."""
        return self.blueprint.structure

    def generate(
        self,
        images: Sequence[Any] | np.ndarray,
        *,
        method: str = "greedy",
        seed: int = 0,
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[str]:
        """A caption for each image: paths, encoded bytes, PIL images, or `[B,H,W,3]` pixels.

        `[B,H,W,3]` float arrays are taken as preprocessed already (`self.preprocessor`), and
        `[B,S,Dv]` arrays as what the encoder would say.

        Args:
          method: one of `decoding.settings.METHODS`.
          batch_size: images at a time, rounded up to what the mesh divides; the last batch is
            padded.
          settings: of `decoding.settings.DecodeSettings`: `max_tokens`, `temperature`, `top_k`,
            `top_p`, `beams`.
        """
        how = DecodeSettings(method, **settings)
        if len(images) == 0:
            return []
        ready = isinstance(images, np.ndarray | jax.Array) and images.ndim in (3, 4)
        size = self.batch_size_for(len(images), batch_size)
        texts: list[str] = []
        for number, start in enumerate(range(0, len(images), size)):
            chunk = images[start : start + size]
            pixels = np.asarray(chunk) if ready else self.preprocess(chunk)
            tokens, lengths = self.run_batch(_pad_rows(pixels, size), how, batch_seed(seed, number))
            texts += self.decode_texts(tokens[: len(chunk)], lengths[: len(chunk)])
        return texts

    def batch_size_for(self, count: int, wanted: int | None = None) -> int:
        """How many images to caption at a time: what is wanted (or configured), but no more than
        there are, rounded up to what the mesh divides."""
        return divisible(min(wanted or self.config.eval.batch_size, max(1, count)), self.mesh)

    def preprocess(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Paths, encoded bytes or PIL images as `[B,H,W,3]` pixels.

        Raises:
          UserError: an image does not decode, or this captioner reads features only.
        """
        if self.preprocessor is None:
            raise UserError(
                "this captioner was trained on imported features and cannot encode images; give "
                "an array of features [B,S,Dv]"
            )
        return np.stack([self.preprocessor(image) for image in images])

    def generate_tokens(
        self, pixels: np.ndarray, *, method: str = "greedy", seed: int = 0, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Preprocessed pixels `[B,H,W,3]` (or features `[B,S,Dv]`) to token ids int32 `[B,T]`, and
        lengths `[B]` with EOS; settings as `generate`'s.

        One jitted call, compiled once per shape and settings. B need not divide by the mesh.
        """
        padded = _pad_rows(pixels, divisible(len(pixels), self.mesh))
        tokens, lengths = self.run_batch(padded, DecodeSettings(method, **settings), seed)
        return tokens[: len(pixels)], lengths[: len(pixels)]

    def run_batch(
        self, pixels: np.ndarray, how: DecodeSettings, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`generate_tokens` of a batch that the mesh divides."""
        if how not in self._compiled:
            write = self.caption_fn(how)

            def seeded(params: Params, images: jax.Array, seed: jax.Array):
                return write(params, images, jax.random.key(seed))

            self._compiled[how] = jax.jit(seeded, out_shardings=replicated(self.mesh))
        with jax.set_mesh(self.mesh):
            # Every process has all rows here: captions come back whole to each of them.
            sharding = batch_sharding(self.mesh)
            images = jax.make_array_from_callback(pixels.shape, sharding, lambda i: pixels[i])
            tokens, lengths = self._compiled[how](self.params, images, np.uint32(seed))
            return np.asarray(tokens), np.asarray(lengths)

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
        how = how or DecodeSettings(method, **settings)
        max_tokens = how.max_tokens or self.config.data.max_tokens
        structure = self.structure
        self.blueprint.config.check_places(max_tokens)

        def write(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            captioner = structure.merge(params)
            cache = captioner.prefill(captioner.project(captioner.encode(images)))
            found = how.write(captioner, cache, max_tokens, key)
            return found.tokens[:, 0], found.lengths[:, 0]

        return write

    def decode_texts(self, tokens: AnyArray, lengths: AnyArray) -> list[str]:
        """Token ids `[B,T]` with lengths `[B]` to captions, without EOS."""
        return [
            self.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)
        ]

    @functools.cached_property
    def _compiled(self) -> dict[DecodeSettings, Any]:
        return {}


def batch_seed(seed: int, number: int) -> int:
    """A seed for batch `number` that no other batch of no other seed shares, as far as 31 bits
    go."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def load_captioner(
    source: PathLike | None = None,
    *,
    encoder: PathLike | None = None,
    lm: PathLike | None = None,
    projector: PathLike | None = None,
    adapter: PathLike | None = None,
    prompt: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    step: str | int = "best",
    dtype: Any = None,
    merge: bool = False,
    clip: PathLike | None = None,
) -> LoadedCaptioner:
    """A captioner, its parameters sharded over a mesh.

        load_captioner("runs/scst")  # a run of har_jax.train
        load_captioner("exported")  # what har_jax.export wrote: a LLaVA or a PEFT directory
        load_captioner(encoder="clip-vit-large-patch14", lm="Mistral-7B-v0.1", projector="runs/mle")

    Args:
      source: a run, a LLaVA directory whose decoder is a Mistral, or a PEFT directory of ours.
      encoder, lm: HF directories (or hub names) of encoder and decoder; with a run or a PEFT
        directory, where its base weights are now. A run's must hash as they did in training.
      projector: a run that trained only its projector, or a directory with `projector.safetensors`.
      adapter: LoRA adapters as PEFT saves them.
      prompt: the text between image and caption, where a directory does not say or says another.
      mesh: with the axes `data`, `fsdp` and `tensor`; of all devices by default.
      rules: from logical axes to mesh axes; `har_jax.sharding.RULES` by default.
      step: of a run: `"best"` (by validation CIDEr), `"latest"` or a number.
      dtype: `"float32"` or `"bfloat16"`, of all parameters and the computation. By default a run's
        own, and for directories bfloat16 if the decoder is stored so, else float32.
      merge: add LoRA's adapters to the kernels: two products less for each when decoding.
      clip: what `encoder` was called once.

    Raises:
      UserError: something is missing, does not belong together, or was changed since training.
    """
    mesh = mesh or make_mesh()
    place = sources.Placement.of(mesh, rules, dtype, dense=merge)
    if clip is not None:
        tell_renamed("load_captioner(clip=)", "encoder=")
        encoder = encoder if encoder is not None else clip
    given = dict(encoder=encoder, lm=lm, projector=projector, adapter=adapter, prompt=prompt)
    given = {name: value for name, value in given.items() if value is not None}
    loaded = sources.load(sources.read_source(source, given, step), place)
    parts, params = loaded.parts, loaded.params
    blueprint, model = parts.blueprint, loaded.config.model
    if merge and model.lora.rank:
        params = lora.merged(params, model.lora.alpha / model.lora.rank)
        model = dataclasses.replace(model, lora=LoraConfig())
        blueprint = blueprint.changed(model)
    config = dataclasses.replace(loaded.config, model=model)
    read = (parts.tokenizer, parts.preprocessor)
    blueprint = blueprint.placed_on(mesh)
    return LoadedCaptioner(blueprint, params, *read, mesh, config, loaded.run, loaded.step)


def _pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until there are `size`, so that every batch has one shape."""
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
