"""How captions are written outside of training: greedily, by sampling, or by beam search."""

from __future__ import annotations

import dataclasses

import jax

from har_jax.decoding.beam import beam_search
from har_jax.decoding.loop import Captions, decode
from har_jax.decoding.plan import DecodePlan
from har_jax.decoding.weights import for_decoding
from har_jax.errors import UserError, did_you_mean
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.types import Array

METHODS = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """One caption an image, by one of three methods. Hashable: a key of what was compiled.

    Attributes:
      method: one of `METHODS`; a user's word, so it is checked here and not by its type.
      max_tokens: T; None: as in training.
      temperature, top_k, top_p: of sampling.
      beams: of beam search.
    """

    method: str = "greedy"
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"method {self.method!r}{did_you_mean(self.method, METHODS)}; allowed: "
                f"{', '.join(METHODS)}"
            )
        if self.beams < 1:
            raise UserError(f"beams is {self.beams}; it must be at least 1")
        self.plan(self.max_tokens or 1)

    def plan(self, max_tokens: int) -> DecodePlan:
        """For the loop, of one row."""
        sampled = self.method == "sample"
        return DecodePlan(
            max_tokens, not sampled, int(sampled), self.temperature, self.top_k, self.top_p
        )

    def write(
        self, captioner: Captioner, cache: PrefixCache, max_tokens: int, key: Array
    ) -> Captions:
        """The caption of each image, R = 1; call it inside `jax.jit`."""
        captioner = for_decoding(captioner)
        if self.method == "beam":
            found = beam_search(captioner, cache, beams=self.beams, max_tokens=max_tokens)
            return found.rows(0, 1)
        return decode(captioner, jax.lax.stop_gradient(cache), self.plan(max_tokens), key).together
