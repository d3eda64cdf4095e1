"""Captioners from a run, or from Hugging Face directories: built in their shards, ready to write.

    captioner = har_jax.load_captioner("runs/scst", mesh=mesh)
    texts = captioner.generate(["photo.jpg"], method="beam")

and for other JAX programs: `captioner.structure`, `captioner.params` and the verbs of
`har_jax.models.captioner.Captioner`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.assembly import (
    check_base,
    is_trained,
    load_lm_params,
    load_vision_params,
    read_foundation,
    read_run,
)
from har_jax.checkpoint import Checkpoints, resolve_step
from har_jax.config import Config
from har_jax.data.images import Preprocessor
from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.errors import UserError, did_you_mean
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.sharding import RULES, Rules, batch_sharding, make_mesh, replicated
from har_jax.text.tokenizer import CaptionTokenizer

METHODS = ("greedy", "sample", "beam")
Method = Literal["greedy", "sample", "beam"]


@dataclasses.dataclass
class LoadedCaptioner:
    """A captioner with its parameters, tokenizer and image preprocessing."""

    structure: Structure[Captioner]
    params: Params
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor
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

        `[B,H,W,3]` float arrays are taken as preprocessed already (`self.preprocessor`).
        """
        ready = isinstance(images, np.ndarray | jax.Array) and images.ndim == 4
        if len(images) == 0:
            return []
        size = min(
            batch_size or self.config.eval.batch_size, _round_up(len(images), self.mesh.size)
        )
        texts: list[str] = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            pixels = np.asarray(chunk) if ready else np.stack([self.preprocessor(x) for x in chunk])
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
        """Preprocessed pixels `[B,H,W,3]` to token ids int32 `[B,T]`, and lengths `[B]` with EOS.

        One jitted call, compiled once per shape and method; B must divide by the mesh's size.
        """
        if method not in METHODS:
            raise UserError(
                f"method {method!r}{did_you_mean(method, METHODS)}; allowed: {', '.join(METHODS)}"
            )
        t = max_tokens or self.config.data.max_tokens
        if method == "beam":
            write = self._beam(beams, t)
        else:
            sampled = method == "sample"
            write = self._write(DecodePlan(t, not sampled, int(sampled), temperature, top_k, top_p))
        with jax.set_mesh(self.mesh):
            # Every process has all rows here: captions come back whole to each of them.
            sharding = batch_sharding(self.mesh)
            images = jax.make_array_from_callback(pixels.shape, sharding, lambda i: pixels[i])
            tokens, lengths = write(self.params, images, np.uint32(seed))
            return np.asarray(tokens), np.asarray(lengths)

    def decode_texts(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
        """Token ids `[B,T]` with lengths `[B]` to captions, without EOS."""
        return [
            self.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)
        ]

    @functools.cached_property
    def _compiled(self) -> dict[Any, Any]:
        return {}

    def _write(self, plan: DecodePlan) -> Any:
        if plan not in self._compiled:

            def write(params: Params, images: jax.Array, seed: jax.Array):
                captioner = self.structure.merge(params)
                cache = captioner.prefill(captioner.project(captioner.encode(images)))
                rollout = decode(captioner, cache, plan, jax.random.key(seed))
                return rollout.tokens[:, 0], rollout.lengths[:, 0]

            self._compiled[plan] = jax.jit(write, out_shardings=replicated(self.mesh))
        return self._compiled[plan]

    def _beam(self, beams: int, max_tokens: int) -> Any:
        if (beams, max_tokens) not in self._compiled:

            def write(params: Params, images: jax.Array, seed: jax.Array):
                del seed
                captioner = self.structure.merge(params)
                cache = captioner.prefill(captioner.project(captioner.encode(images)))
                found = beam_search(captioner, cache, beams=beams, max_tokens=max_tokens)
                return found.tokens[:, 0], found.lengths[:, 0]

            self._compiled[beams, max_tokens] = jax.jit(write, out_shardings=replicated(self.mesh))
        return self._compiled[beams, max_tokens]


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
    run: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    step: str | int = "best",
) -> LoadedCaptioner:
    """A captioner from a run directory of `har_jax.train`, its parameters sharded over `mesh`.

    `step` is `"best"` (by validation CIDEr), `"latest"` or a number; `mesh` is of all devices by
    default.
    The base weights are read again from where the run found them, and must still hash the same.
    """
    config, info = read_run(run)
    foundation = read_foundation(config.model)
    check_base(info, foundation, run)
    number = resolve_step(run, step)
    mesh = mesh or make_mesh()
    checkpoints = Checkpoints(run, read_only=True)
    structure = foundation.structure(config.model)
    shardings = structure.shardings(mesh, rules)
    trained = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
        for name, x in structure.shapes.items()
        if is_trained(name, config.model)
    }
    params = load_vision_params(config.model, mesh, rules)
    if not config.model.train_lm:
        params |= load_lm_params(config.model, mesh, rules, config.model.frozen_dtype)
    params |= checkpoints.restore_params(number, trained)
    checkpoints.close()
    return LoadedCaptioner(
        structure,
        params,
        foundation.tokenizer,
        foundation.preprocessor,
        mesh,
        config,
        info,
        number,
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until there are `size`, so that every batch has one shape."""
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
