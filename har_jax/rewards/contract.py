"""What a reward is: pure, thread-safe host code from captions to numbers.

    reward(image_ids: int64[B], captions: list[B][R] of str, ended: bool[B,R]) -> float32[B,R]

R captions belong to each of B images. `ended` tells whether a caption reached EOS or was cut at the
length limit. Several threads may call a reward at once (one per device of a host), so it must not
change itself without a lock. `signature` names everything the values depend on; runs record it, and
two runs with different signatures are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from har_jax.errors import UserError


@runtime_checkable
class Reward(Protocol):
    """See the module's docstring."""

    @property
    def signature(self) -> str: ...

    def __call__(
        self,
        image_ids: Int64[np.ndarray, " B"],
        captions: Sequence[Sequence[str]],
        ended: Bool[np.ndarray, "B R"],
    ) -> Float32[np.ndarray, "B R"]: ...


def name_of(reward: Reward) -> str:
    """A reward's signature, or its class where it has none."""
    return getattr(reward, "signature", None) or type(reward).__name__


def checked(
    reward: Reward,
    image_ids: Int64[np.ndarray, " B"],
    captions: Sequence[Sequence[str]],
    ended: Bool[np.ndarray, "B R"],
) -> Float32[np.ndarray, "B R"]:
    """Calls a reward and checks what it returns.

    Raises:
      UserError: the result is no numpy float array of shape [B, R], or holds NaN or infinity; the
        message names the reward. Whatever the reward itself raises passes through.
    """
    values = reward(image_ids, captions, ended)
    name = name_of(reward)
    if not isinstance(values, np.ndarray):
        raise UserError(
            f"reward {name} returned a {type(values).__name__}, need a numpy array; "
            "wrap the result in np.asarray(..., np.float32)"
        )
    if values.shape != ended.shape:
        raise UserError(
            f"reward {name} returned shape {values.shape} for {ended.shape[0]} images of "
            f"{ended.shape[1]} captions, need {ended.shape}"
        )
    if values.dtype != np.float32:
        raise UserError(
            f"reward {name} returned {values.dtype}, need float32; use .astype(np.float32)"
        )
    if not np.isfinite(values).all():
        b, r = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise UserError(
            f"reward {name} gave {values[b, r]} to caption {r} of image {int(image_ids[b])} "
            f"({captions[b][r]!r}); rewards must be finite"
        )
    return values
