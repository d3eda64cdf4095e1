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
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.config import Config, LoraConfig
from har_jax.data.images import Preprocessor
from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.errors import UserError, did_you_mean
from har_jax.loading import sources as pretrained
from har_jax.models import lora
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.sharding import RULES, Rules, batch_sharding, make_mesh, replicated
from har_jax.text.tokenizer import CaptionTokenizer

METHODS = ("greedy", "sample", "beam")
Method = Literal["greedy", "sample", "beam"]
CaptionFn = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass
class LoadedCaptioner:
    """A captioner with its parameters, tokenizer and image preprocessing."""

    structure: Structure[Captioner]
    params: Params
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor | None  # None: it reads imported features, not images
    mesh: Mesh
    config: Config
    run: dict[str, Any] = dataclasses.field(default_factory=dict)  # run.json
    step: int = 0

    def generate(
        self,
        images: Sequence[Any] | np.ndarray,
        *,
        method: Method = "greedy",
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 5,
        batch_size: int | None = None,
    ) -> list[str]:
        """A caption for each image: paths, encoded bytes, PIL images, or `[B,H,W,3]` pixels.

        `[B,H,W,3]` float arrays are taken as preprocessed already (`self.preprocessor`), and
        `[B,S,Dv]` arrays as what the encoder would say.
        """
        ready = isinstance(images, np.ndarray | jax.Array) and images.ndim in (3, 4)
        if len(images) == 0:
            return []
        size = min(
            batch_size or self.config.eval.batch_size, _round_up(len(images), self.mesh.size)
        )
        texts: list[str] = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            pixels = np.asarray(chunk) if ready else self.preprocess(chunk)
            tokens, lengths = self.generate_tokens(
                _pad_rows(pixels, size),
                method=method,
                max_tokens=max_tokens,
                seed=seed + start,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                beams=beams,
            )
            texts += self.decode_texts(tokens[: len(chunk)], lengths[: len(chunk)])
        return texts

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
        self,
        pixels: np.ndarray,
        *,
        method: Method = "greedy",
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 5,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Preprocessed pixels `[B,H,W,3]` (or features `[B,S,Dv]`) to token ids int32 `[B,T]`, and
        lengths `[B]` with EOS.

        One jitted call, compiled once per shape and method; B must divide by the mesh's size.
        """
        options = (method, max_tokens, temperature, top_k, top_p, beams)
        if options not in self._compiled:
            write = self.caption_fn(
                method=method,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                beams=beams,
            )

            def seeded(params: Params, images: jax.Array, seed: jax.Array):
                return write(params, images, jax.random.key(seed))

            self._compiled[options] = jax.jit(seeded, out_shardings=replicated(self.mesh))
        with jax.set_mesh(self.mesh):
            # Every process has all rows here: captions come back whole to each of them.
            sharding = batch_sharding(self.mesh)
            images = jax.make_array_from_callback(pixels.shape, sharding, lambda i: pixels[i])
            tokens, lengths = self._compiled[options](self.params, images, np.uint32(seed))
            return np.asarray(tokens), np.asarray(lengths)

    def caption_fn(
        self,
        *,
        method: Method = "greedy",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 5,
    ) -> CaptionFn:
        """A pure function `(params, images, key) -> (tokens, lengths)` for programs of your own.

        It holds no arrays and no state: `jax.jit` it with whatever stands around it, or call it
        inside `shard_map`. `params` are `self.params`, or others of the same names and shapes;
        images are preprocessed pixels `[B,H,W,3]` (or features `[B,S,Dv]`), and the key is used
        where `method="sample"`. Returns int32 ids `[B,T]` and lengths `[B]`, EOS included, for
        `decode_texts`. On a mesh, call it within `jax.set_mesh(mesh)`.
        """
        if method not in METHODS:
            raise UserError(
                f"method {method!r}{did_you_mean(method, METHODS)}; allowed: {', '.join(METHODS)}"
            )
        t = max_tokens or self.config.data.max_tokens
        structure = self.structure
        sampled = method == "sample"
        plan = DecodePlan(t, not sampled, int(sampled), temperature, top_k, top_p)

        def write(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            captioner = structure.merge(params)
            cache = captioner.prefill(captioner.project(captioner.encode(images)))
            if method == "beam":
                found = beam_search(captioner, cache, beams=beams, max_tokens=t)
            else:
                found = decode(captioner, cache, plan, key)
            return found.tokens[:, 0], found.lengths[:, 0]

        return write

    def decode_texts(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
        """Token ids `[B,T]` with lengths `[B]` to captions, without EOS."""
        return [
            self.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)
        ]

    @functools.cached_property
    def _compiled(self) -> dict[Any, Any]:
        return {}


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as global arrays split over `data` and `fsdp`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, _for_device(name, value))
        for name, value in batch.items()
    }


def _for_device(name: str, value: np.ndarray) -> np.ndarray:
    """64-bit integers as 32-bit ones, as devices hold them; `UserError` where one does not fit."""
    if value.dtype != np.int64:
        return value
    narrow = value.astype(np.int32)
    if not np.array_equal(narrow, value):
        raise UserError(
            f"{name} {value.max()} does not fit 32 bits; number the images of the dataset anew"
        )
    return narrow


def load_captioner(
    source: str | os.PathLike[str] | None = None,
    *,
    clip: str | os.PathLike[str] | None = None,
    lm: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    step: str | int = "best",
    dtype: Any = None,
    merge: bool = False,
) -> LoadedCaptioner:
    """A captioner, its parameters sharded over a mesh.

        load_captioner("runs/scst")  # a run of har_jax.train
        load_captioner("exported")  # what har_jax.export wrote: a LLaVA or a PEFT directory
        load_captioner(clip="clip-vit-large-patch14", lm="Mistral-7B-v0.1", projector="runs/mle")

    Args:
      source: a run, a LLaVA directory whose decoder is a Mistral, or a PEFT directory of ours.
      clip, lm: HF directories (or hub names) of encoder and decoder; with a run or a PEFT
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

    Raises:
      UserError: something is missing, does not belong together, or was changed since training.
    """
    mesh = mesh or make_mesh()
    place = pretrained.Placement.of(mesh, rules, dtype)
    parts = _read(source, clip, lm, projector, adapter, prompt, step, place)
    model, params = parts.config.model, parts.params
    if merge and model.lora.rank:
        params = lora.merged(params, model.lora.alpha / model.lora.rank)
        model = dataclasses.replace(model, lora=LoraConfig())
    return LoadedCaptioner(
        parts.foundation.structure(model),
        params,
        parts.foundation.tokenizer,
        parts.foundation.preprocessor,
        mesh,
        dataclasses.replace(parts.config, model=model),
        parts.run,
        parts.step,
    )


def _read(
    source: str | os.PathLike[str] | None,
    clip: str | os.PathLike[str] | None,
    lm: str | os.PathLike[str] | None,
    projector: str | os.PathLike[str] | None,
    adapter: str | os.PathLike[str] | None,
    prompt: str | None,
    step: str | int,
    place: pretrained.Placement,
) -> pretrained.Parts:
    if source is None:
        if clip is None or lm is None or projector is None:
            given = {"clip": clip, "lm": lm, "projector": projector}
            missing = [name for name, value in given.items() if value is None]
            raise UserError(
                f"load_captioner lacks {', '.join(missing)}; give a run or an exported directory, "
                "load_captioner(DIR), or all of clip=DIR, lm=DIR and projector=DIR"
            )
        return pretrained.from_directories(
            clip, lm, projector, place, adapter=adapter, prompt=prompt
        )
    kind = pretrained.kind_of(source)
    foreign = {"projector": projector, "adapter": adapter}
    foreign |= {"llava": {"clip": clip, "lm": lm}, "run": {"prompt": prompt}}.get(kind, {})
    given = [name for name, value in foreign.items() if value is not None]
    if given:
        what = {"run": "a run", "llava": "a LLaVA directory", "peft": "a PEFT directory"}[kind]
        raise UserError(
            f"{os.fspath(source)} is {what}, which has its own {', '.join(given)}; leave that out"
        )
    if kind == "llava":
        return pretrained.from_llava(source, place, prompt)
    if kind == "peft":
        return pretrained.from_peft(source, place, clip, lm, prompt)
    return pretrained.from_run(source, step, place, clip, lm)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until there are `size`, so that every batch has one shape."""
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
