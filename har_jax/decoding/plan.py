"""What a decode loop should write: how many captions of each image, and how each is chosen."""

from __future__ import annotations

import dataclasses

from har_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Rows of one loop: an optional greedy row first, then `samples` sampled rows.

    `temperature`, `top_k` (0: off) and `top_p` (1: off) shape the sampled rows only. Frozen and
    hashable, so that it can be a static argument of a jitted function.
    """

    max_tokens: int
    greedy: bool = True
    samples: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.samples < 0 or self.rows < 1:
            raise UserError("a decode plan needs a greedy row or at least one sample")
        if self.temperature <= 0:
            raise UserError(
                f"temperature is {self.temperature}; it must be above 0 (a greedy row is argmax)"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"top_k is {self.top_k} and top_p {self.top_p}; top_k must be 0 (off) or more, "
                "top_p above 0 and at most 1 (off)"
            )

    @property
    def truncates(self) -> bool:
        """Whether samples are kept from some of the vocabulary."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def rows(self) -> int:
        """R: captions per image."""
        return int(self.greedy) + self.samples
