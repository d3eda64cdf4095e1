"""What a reward is: pure, thread-safe host code from captions to numbers.

    reward(image_ids: int64[B], captions: list[B][R] of str, ended: bool[B,R]) -> float32[B,R]

R captions belong to each of B images. `ended` tells whether a caption reached EOS or was cut at the
length limit. Several threads may call a reward at once (one per device of a host), so it must not
change itself without a lock. `signature` names everything the values depend on; runs record it, and
two runs with different signatures are not comparable.

A neural reward does not run on the host: a callback may not start a computation on the devices that
wait for it. A `DeviceReward` therefore has two halves. `prepare` runs in the callback and turns
captions into arrays (token ids, look-ups); `in_jit` runs in the step, on the devices, and turns
these into rewards. A `LoadedReward` has something to read before the first step, such as the
parameters of `in_jit`. `rewards.callback` and `MixedReward` look for both by their methods.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from har_jax.errors import UserError
from har_jax.metrics.word_lists import refuse_text_of_list

ImageIds = Int64[np.ndarray, " B"]
Texts = Sequence[Sequence[str]]
"""[B][R] captions."""
Ended = Bool[np.ndarray, "B R"]
Values = Float32[np.ndarray, "B R"]


@runtime_checkable
class Reward(Protocol):
    """See the module's docstring."""

    @property
    def signature(self) -> str: ...

    def __call__(self, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values: ...


@runtime_checkable
class DeviceReward(Reward, Protocol):
    """A reward with a host half and a device half, see the module's docstring. Calling it, outside
    of any callback, gives the same values."""

    def shapes(self, batch: int, rows: int) -> Sequence[tuple[tuple[int, ...], Any]]:
        """(shape, dtype) of each array of `prepare` for B images of R captions; B comes first."""
        ...

    def prepare(self, image_ids: ImageIds, captions: Texts) -> Sequence[np.ndarray]:
        """The host half: numpy only, thread-safe."""
        ...

    def in_jit(self, params: Mapping[str, Any], *prepared: Any) -> Any:
        """The device half: [B, R] from what `load` returned and from the arrays of `prepare`."""
        ...


@runtime_checkable
class LoadedReward(Protocol):
    """A reward with something to read before the first step; it touches no device until then."""

    def load(self, mesh: Any, folder: str | os.PathLike[str] | None) -> Mapping[str, Any]:
        """Makes it ready for steps on a `jax.sharding.Mesh` (None: one device).

        Args:
          folder: the run's directory, which may hold what `save` left there.

        Returns:
          The parameters of `in_jit` in their shards, under names of its own; {} if it has none.
        """
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Keeps for the next `load` what took long to make."""
        ...


def name_of(reward: Reward) -> str:
    """A reward's signature, or its class where it has none."""
    return getattr(reward, "signature", None) or type(reward).__name__


def check_captions(captions: Texts) -> None:
    """Raises `UserError` where a text stands for the R captions of an image, or for all of them:
    its letters would be the captions."""
    refuse_text_of_list(captions)
    for group in captions:
        refuse_text_of_list(group)


def checked(reward: Reward, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values:
    """Calls a reward and checks what it returns.

    Raises:
      UserError: a text stands for a list of captions, or the result is no numpy float array of
        shape [B, R], or holds NaN or infinity; the message names the reward. Whatever the reward
        itself raises passes through.
    """
    check_captions(captions)
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
        fix = "use .astype(np.float32)"
        raise UserError(f"reward {name} returned {values.dtype}, need float32; {fix}")
    if not np.isfinite(values).all():
        b, r = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise UserError(
            f"reward {name} gave {values[b, r]} to caption {r} of image {int(image_ids[b])} "
            f"({captions[b][r]!r}); rewards must be finite"
        )
    return values
