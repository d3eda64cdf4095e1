"""A reward as a function of device arrays, usable inside a jitted step.

The callback runs inside `shard_map` over *all* axes of the mesh: each process scores the rows of
its own devices, once. (In plain jit process 0 would score the whole global batch; in `shard_map`
over some axes every replica would score its rows again.)

An exception cannot cross the compiled program without losing its traceback, so it is kept, the
rewards become NaN, and `raise_if_failed` raises the original on the host.

Parts of a reward that need a network (`contract.DeviceReward`) get what they need from the same
callback, and their values in the step itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import PartitionSpec

from har_jax.errors import UserError
from har_jax.rewards.contract import DeviceReward, Reward, checked
from har_jax.rewards.mix import MixedReward
from har_jax.types import Array, Float, Int

# XLA:CPU hangs when a callback on one of several virtual devices receives an operand of 128 KiB or
# more while its thread pool is as small as the machine: the copy waits for a thread that waits for
# the callback. A pool of 32 threads (NPROC, read when XLA starts) avoids it; 64 KiB keeps a margin.
_CPU_OPERAND_LIMIT = 64 * 1024
_CPU_POOL = 32


class RewardCallback:
    """`reward` for use inside jit: device arrays in, rewards [B, R] out, no gradient.

    Args:
      reward: thread-safe host code, see `rewards.contract`; device parts only inside a
        `MixedReward`.
      decode: token ids without EOS -> text; host code, thread-safe.
      eos_id: the token that ends a caption.
      mesh: devices of the computation; the images of a batch are split over all of them. None
        means one device.
      kind: "pure" (XLA may drop an unused call) or "io" (runs exactly once per execution).
      vocab_size: with at most 65,536 tokens they travel as uint16, half the bytes.
    """

    def __init__(
        self,
        reward: Reward,
        decode: Callable[[list[int]], str],
        *,
        eos_id: int,
        mesh: jax.sharding.Mesh | None = None,
        kind: Literal["pure", "io"] = "pure",
        vocab_size: int | None = None,
    ):
        if kind not in ("pure", "io"):
            raise UserError(f"kind of reward callback is {kind!r}; choose 'pure' or 'io'")
        self.reward = reward
        self._device: dict[str, DeviceReward] = {}
        if isinstance(reward, MixedReward):
            self._device = reward.device_parts
        self._decode = decode
        self._eos_id = eos_id
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._kind = kind
        small = vocab_size is not None and vocab_size <= 2**16
        self._token_dtype = jnp.uint16 if small else jnp.int32
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def __call__(
        self,
        image_ids_b: Int[Array, " B"],
        tokens_brt: Int[Array, "B R T"],
        lengths_br: Int[Array, "B R"],
        params: Mapping[str, Array] | None = None,
    ) -> Float[Array, "B R"]:
        """See `with_parts`, whose first result this is."""
        return self.with_parts(image_ids_b, tokens_brt, lengths_br, params)[0]

    def with_parts(
        self,
        image_ids_b: Int[Array, " B"],
        tokens_brt: Int[Array, "B R T"],
        lengths_br: Int[Array, "B R"],
        params: Mapping[str, Array] | None = None,
    ) -> tuple[Float[Array, "B R"], dict[str, Float[Array, "B R"]]]:
        """Rewards of captions whose lengths count EOS; length 0 is an empty, unfinished caption.

        Args:
          params: the step's frozen parameters, of which device parts read their own.

        Returns:
          (rewards, {name of a device part: its values without its weight}).

        Raises:
          UserError: shapes that do not fit, B not divisible by the mesh, operands that would hang.
        """
        batch, rows = tokens_brt.shape[:2]
        if image_ids_b.shape != (batch,) or lengths_br.shape != (batch, rows):
            raise UserError(
                f"image ids {image_ids_b.shape} and lengths {lengths_br.shape} do not fit tokens "
                f"{tokens_brt.shape}; need [B], [B, R] and [B, R, T]"
            )
        operands = (
            as_int32(image_ids_b),
            tokens_brt.astype(self._token_dtype),
            lengths_br.astype(jnp.int32),
        )
        if self._mesh is None:
            return self._finish(self._call(*operands), params or {})
        _check_mesh(self._mesh, batch, max(x.size * x.dtype.itemsize for x in operands))
        by_image = PartitionSpec(self._mesh.axis_names)
        # A callback has no rule for replication checks; every axis is used, so nothing replicates.
        sharded = jax.shard_map(
            self._call,
            mesh=self._mesh,
            in_specs=(by_image, by_image, by_image),
            out_specs=by_image,
            check_vma=False,
        )
        return self._finish(sharded(*operands), params or {})

    def raise_if_failed(self) -> None:
        """Raises, once, the first exception that a call of the reward has raised."""
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _finish(
        self, found: Sequence[Array], params: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Adds the device parts to what the host gave."""
        rewards, *prepared = jax.lax.stop_gradient(list(found))
        if not isinstance(self.reward, MixedReward):
            return rewards, {}
        params = jax.lax.stop_gradient(dict(params))
        values = {}
        for name, part in self._device.items():
            n = len(part.shapes(*rewards.shape))
            mine, prepared = prepared[:n], prepared[n:]
            values[name] = part.in_jit(params, *mine).astype(jnp.float32)
            rewards = rewards + self.reward.weights[name] * values[name]
        return rewards, values

    def _call(self, image_ids_b, tokens_brt, lengths_br):
        """The callback itself, on one device's rows."""
        results = tuple(
            jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self._shapes(lengths_br.shape)
        )
        if self._kind == "io":
            return io_callback(self._score, results, image_ids_b, tokens_brt, lengths_br)
        return jax.pure_callback(self._score, results, image_ids_b, tokens_brt, lengths_br)

    def _shapes(self, shape: tuple[int, int]) -> list[tuple[tuple[int, ...], Any]]:
        """Of what a call returns: the host's rewards, then the arrays of each device part."""
        return [(shape, jnp.float32), *(x for p in self._device.values() for x in p.shapes(*shape))]

    def _score(self, image_ids, tokens, lengths) -> tuple[np.ndarray, ...]:
        """Runs on the host, in a thread of XLA. Only numpy here: jnp would wait for that thread."""
        try:
            return self._score_or_raise(
                np.asarray(image_ids).astype(np.int64), np.asarray(tokens), np.asarray(lengths)
            )
        except Exception as error:  # anything: it is raised again by raise_if_failed
            with self._lock:
                if self._failure is None:
                    self._failure = error
            first, *others = self._shapes(lengths.shape)
            return (np.full(first[0], np.nan, np.float32), *(np.zeros(*x) for x in others))

    def _score_or_raise(
        self, image_ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[..., None], axis=2)[..., 0]
        ended = (lengths > 0) & (last == self._eos_id)
        words = lengths - ended
        captions = [
            [self._decode(row[:count]) for row, count in zip(rows, counts, strict=True)]
            for rows, counts in zip(tokens.tolist(), words.tolist(), strict=True)
        ]
        if not self._device:
            return (checked(self.reward, image_ids, captions, ended),)
        assert isinstance(self.reward, MixedReward)
        rewards = self.reward.host_sum(image_ids, captions, ended)
        prepared = [x for p in self._device.values() for x in p.prepare(image_ids, captions)]
        return (rewards, *prepared)


def _check_mesh(mesh: jax.sharding.Mesh, batch: int, operand_bytes: int) -> None:
    if batch % mesh.size:
        raise UserError(
            f"a batch of {batch} images cannot be split over {mesh.size} devices "
            f"(mesh {dict(mesh.shape)}); use a multiple of {mesh.size}"
        )
    per_shard = operand_bytes // mesh.size
    if mesh.devices.flat[0].platform != "cpu" or per_shard < _CPU_OPERAND_LIMIT:
        return
    if int(os.environ.get("NPROC") or 0) < _CPU_POOL:
        raise UserError(
            f"reward operands of {per_shard} bytes per device would hang on {mesh.size} virtual "
            f"CPU devices; set NPROC={_CPU_POOL} in the environment before JAX starts, or stay "
            f"below {_CPU_OPERAND_LIMIT} bytes (smaller batch, or vocab_size given)"
        )


def as_int32(image_ids: Int[Array, " B"] | np.ndarray) -> Int[Array, " B"] | np.ndarray:
    """Image ids as devices hold them; host arrays are checked, traced ones are int32 already.

    Raises:
      UserError: an id outside int32, which a device would silently wrap.
    """
    if isinstance(image_ids, np.ndarray) and image_ids.size:
        limits = np.iinfo(np.int32)
        if image_ids.min() < limits.min or image_ids.max() > limits.max:
            raise UserError(
                f"image id {image_ids.max()} does not fit the 32 bits of a device integer; "
                "number the images of the dataset anew"
            )
    return image_ids.astype(np.int32)
