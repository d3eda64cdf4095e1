"""How captions are written outside of training: greedily, by sampling, or by beam search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from har_jax.decoding.beam import EarlyStopping, beam_search
from har_jax.decoding.loop import Captions, decode
from har_jax.decoding.plan import DecodePlan
from har_jax.decoding.weights import for_decoding
from har_jax.errors import UserError, did_you_mean
from har_jax.models.captioner import Captioner, PrefixCache
from har_jax.settings import (
    Beams,
    Count,
    CountOrZero,
    LengthPenalty,
    Positive,
    Share,
    Tokens,
    checked_number,
)
from har_jax.types import AnyArray, Array

METHODS = ("greedy", "sample", "beam")
EARLY_STOPPING: tuple[EarlyStopping, ...] = (False, True, "never")
_NUMBERS: dict[str, Any] = {
    "beams": Beams,
    "num_return": Count,
    "max_tokens": Tokens,
    "temperature": Positive,
    "top_k": CountOrZero,
    "top_p": Share,
    "length_penalty": LengthPenalty,
}


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """Captions of an image, by one of three methods. Hashable: a key of what was compiled.

    Attributes:
      method: one of `METHODS`; a user's word, so it is checked here and not by its type.
      max_tokens: T; None: as in training.
      temperature, top_k, top_p: of sampling.
      beams, length_penalty, early_stopping: of beam search (`decoding.beam.beam_search`), with the
        meanings and defaults of transformers; but there are 5 beams where none are given.
      num_return: R, captions of each image: so many samples, or the best of the beams.
    """

    method: str = "greedy"
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 5
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"method {self.method!r}{did_you_mean(str(self.method), METHODS)}; allowed: "
                f"{', '.join(METHODS)}"
            )
        settings = {name: value for name, value in vars(self).items() if value is not None}
        for name, allowed in _NUMBERS.items():
            if name == "max_tokens" and name not in settings:  # as in training
                continue
            checked_number(name, settings.get(name), allowed)
        if not any(self.early_stopping is known for known in EARLY_STOPPING[:2]) and (
            self.early_stopping != "never"
        ):
            raise UserError(
                f"early_stopping is {self.early_stopping!r}; it must be False, True or 'never'"
            )
        most = {"greedy": 1, "beam": self.beams}.get(self.method)
        if most is not None and self.num_return > most:
            fix = {"greedy": "use method='sample' or 'beam'", "beam": "raise beams"}[self.method]
            raise UserError(
                f"num_return is {self.num_return}, but method={self.method!r} writes at most "
                f"{most} of each image; {fix}"
            )
        self.plan(1 if self.max_tokens is None else self.max_tokens)

    @classmethod
    def of(cls, method: str, settings: Mapping[str, Any]) -> DecodeSettings:
        """Of a caller's keyword arguments.

        Raises:
          UserError: one that there is not, or that may not have this value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise UserError(
                    f"no setting {name!r} of captions{did_you_mean(name, known)}; there are "
                    f"{', '.join(known)}"
                )
        return cls(method, **settings)

    def plan(self, max_tokens: int) -> DecodePlan:
        """For the loop: the greedy row, or as many sampled ones as are asked for."""
        sampled = self.method == "sample"
        shaped = (self.temperature, self.top_k, self.top_p)
        return DecodePlan(max_tokens, not sampled, self.num_return if sampled else 0, *shaped)

    def write(
        self, captioner: Captioner, cache: PrefixCache, max_tokens: int, key: Array
    ) -> Captions:
        """`num_return` captions of each image; call it inside `jax.jit`."""
        captioner = for_decoding(captioner)
        if self.method == "beam":
            found = beam_search(
                captioner,
                cache,
                beams=self.beams,
                max_tokens=max_tokens,
                length_penalty=self.length_penalty,
                early_stopping=self.early_stopping,
            )
            return found.rows(0, self.num_return)
        return decode(captioner, jax.lax.stop_gradient(cache), self.plan(max_tokens), key).together

    def score(self, logp: AnyArray, lengths: AnyArray) -> np.ndarray:
        """What captions are ranked by, `[B,R]`: the sum of `Captions.logp` `[B,R,T]`, which of beam
        search is divided by length**length_penalty."""
        total = np.sum(np.asarray(logp), axis=-1)
        if self.method != "beam":
            return total
        return total / np.maximum(np.asarray(lengths), 1).astype(np.float32) ** self.length_penalty
