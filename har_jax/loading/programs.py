"""The programs that a loaded captioner runs over a mesh, each compiled once: images in, arrays on
the host of every process out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from har_jax.decoding.loop import Captions
from har_jax.loading import visual
from har_jax.models.captioner import Captioner
from har_jax.models.functional import Params, Structure
from har_jax.models.logprobs import length_mask
from har_jax.sharding import batch_sharding, replicated
from har_jax.types import Array

TEXTS = 64
"""Of an image, that are scored at a time."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """See the module's docstring. `rows` are a batch's pixels [B,H,W,3] or features [B,S,Dv], and
    the mesh divides B."""

    structure: Structure[Captioner]
    mesh: Mesh

    def write(
        self,
        how: Hashable,
        captions_fn: Callable[[Any], Callable[..., Captions]],
        params: Params,
        rows: np.ndarray,
        seed: int,
    ) -> Captions:
        """What `captions_fn(how)` writes, with the key of a seed."""

        def make() -> Callable[..., Captions]:
            write = captions_fn(how)
            return lambda params, seed, images: write(params, images, jax.random.key(seed))

        return self._run(how, make, params, np.uint32(seed), rows)

    def features(self, params: Params, rows: np.ndarray) -> np.ndarray:
        """What the encoder says: float32 [B,S,Dv]."""

        def encode(params: Params, images: Array) -> Array:
            return self.structure.merge(params).encode(images).astype(jnp.float32)

        return self._run("features", lambda: encode, params, rows)

    def score(
        self, params: Params, rows: np.ndarray, tokens: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """log P of texts [B,R,T] (or [1,R,T], the same for all), summed up to their lengths:
        float32 [B,R]. Many go by blocks of `TEXTS`; rows of texts are filled up to those of
        images."""
        if len(tokens) == 1:
            tokens, lengths = (np.repeat(x, len(rows), axis=0) for x in (tokens, lengths))
        tokens, lengths = (visual.padded(x, len(rows)) for x in (tokens, lengths))
        r = tokens.shape[1]
        if r <= TEXTS:
            return self._run("score", lambda: self._score, params, rows, tokens, lengths)
        rows = self.features(params, rows)  # the images once, the texts block by block
        found = []
        for start in range(0, r, TEXTS):
            # The last block reaches back for its texts, for all to be of one size.
            first = min(start, r - TEXTS)
            of_block = (x[:, first : first + TEXTS] for x in (tokens, lengths))
            scores = self._run("score", lambda: self._score, params, rows, *of_block)
            found.append(scores[:, start - first :])
        return np.concatenate(found, axis=1)

    def _score(self, params: Params, images: Array, tokens: Array, lengths: Array) -> Array:
        captioner = self.structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(images)))
        logp = captioner.score(cache, tokens)
        return jnp.sum(logp * length_mask(lengths, tokens.shape[-1]), axis=-1)

    def _run(
        self, key: Hashable, make: Callable[[], Callable[..., Any]], params: Params, *given: Any
    ) -> Any:
        """`make()(params, *given)`, compiled once under its key. Arrays are split along their first
        axis."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(make(), out_shardings=replicated(self.mesh))
        sharding = batch_sharding(self.mesh)

        def spread(x: Any) -> Any:
            # Every process has all rows here: results come back whole to each of them.
            if not np.ndim(x):
                return x
            return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

        with jax.set_mesh(self.mesh):
            found = self._compiled[key](params, *map(spread, given))
            return jax.tree.map(np.asarray, found)

    @functools.cached_property
    def _compiled(self) -> dict[Hashable, Any]:
        return {}
