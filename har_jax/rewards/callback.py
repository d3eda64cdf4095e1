"""A reward as a function of device arrays, usable inside a jitted step.

The host is asked inside `shard_map`, once for the rows of each place on the axes `data` and `fsdp`,
so each process scores the rows of its own devices, and each row is scored once: the devices that
share rows (along `tensor`) get them from the first of them. (In plain jit process 0 would score the
whole global batch.)

The host returns arrays, one for each of its parts and those that device parts ask for
(`contract.DeviceReward`); the step computes device parts from these, weighs and adds. Nothing is
kept on the way, so XLA may call the host as it likes.

An exception cannot cross the compiled program without losing its traceback, so it is kept, the
rewards become NaN, and `raise_if_failed` raises the original on the host. A reward that hangs is
such an exception too, after its time (`limit.py`): the step ends, and the loop hears of signals.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from har_jax.distributed import narrow
from har_jax.errors import UserError
from har_jax.rewards.contract import checked
from har_jax.rewards.limit import SECONDS, Limit
from har_jax.rewards.mix import MixedReward
from har_jax.sharding import BATCH_AXES
from har_jax.text import ptb
from har_jax.types import AnyArray, Array, Float, Int

# XLA:CPU hangs when a callback on one of several virtual devices receives an operand of 128 KiB or
# more while its thread pool is as small as the machine: the copy waits for a thread that waits for
# the callback. A pool of 32 threads (NPROC, read when XLA starts) avoids it; 64 KiB keeps a margin.
_CPU_OPERAND_LIMIT = 64 * 1024
_CPU_POOL = 32


class RewardCallback:
    """`reward` for use inside jit: device arrays in, rewards [B, R] and their parts out, no
    gradient.

    Args:
      reward: its parts are thread-safe, see `rewards.contract`; `MixedReward.single` makes one of a
        reward that is no sum.
      decode: token ids without EOS -> text; host code, thread-safe.
      eos_ids: the tokens that end a caption, any of them.
      mesh: devices of the computation; the images of a batch are split over those of its axes that
        are `sharding.BATCH_AXES`. None means one device.
      vocab_size: with at most 65,536 tokens they travel as uint16, half the bytes.
      seconds: that the reward of a batch may take.
    """

    def __init__(
        self,
        reward: MixedReward,
        decode: Callable[[list[int]], str],
        *,
        eos_ids: Sequence[int],
        mesh: jax.sharding.Mesh | None = None,
        vocab_size: int | None = None,
        seconds: float = SECONDS,
    ):
        self.reward = reward
        self._device = reward.device_parts
        self._decode = decode
        self._eos_ids = list(eos_ids)
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        small = vocab_size is not None and vocab_size <= 2**16
        self._token_dtype = jnp.uint16 if small else jnp.int32
        self._failure: Exception | None = None
        self._seconds = 0.0
        self._limit = Limit(seconds)
        self._part = ""  # that is being computed
        # Here, and not by as many threads as there are devices in the middle of the first step,
        # while the others wait for them in a collective. (CIDEr-D compiles when it is made.)
        ptb.warm_up()

    def __call__(
        self,
        image_ids: Int[AnyArray, " B"],
        tokens: Int[Array, "B R T"],
        lengths: Int[Array, "B R"],
        params: Mapping[str, Array] | None = None,
    ) -> tuple[Float[Array, "B R"], dict[str, Float[Array, "B R"]]]:
        """Rewards of captions whose lengths count EOS; length 0 is an empty, unfinished caption.

        Args:
          params: the step's parameters, of which device parts read their own (`MixedReward.load`).

        Returns:
          (rewards, {name of a part: its values without its weight}).

        Raises:
          UserError: shapes that do not fit, B not divisible by the mesh, operands that would hang.
        """
        batch, rows = tokens.shape[:2]
        if image_ids.shape != (batch,) or lengths.shape != (batch, rows):
            raise UserError(
                f"image ids {image_ids.shape} and lengths {lengths.shape} do not fit tokens "
                f"{tokens.shape}; need [B], [B, R] and [B, R, T]"
            )
        if isinstance(image_ids, np.ndarray):
            image_ids = narrow("image_id", image_ids)
        ids = jnp.asarray(image_ids, jnp.int32)
        operands = (ids, tokens.astype(self._token_dtype), lengths.astype(jnp.int32))
        # 1. The host's parts, and what device parts need of it.
        asked = self._ask_host(*operands) if self._mesh is None else self._by_shards(*operands)
        failed_b, *arrays = jax.lax.stop_gradient(asked)
        # 2. The device parts.
        frozen = jax.lax.stop_gradient(dict(params or {}))
        parts = {}
        for name in self.reward.parts:
            mine = [arrays.pop(0) for _ in self._results_of(name, batch, rows)]
            if name in self._device:
                own = self.reward.params_of(name, frozen)
                values = self._device[name].in_jit(own, *mine).astype(jnp.float32)
            else:
                (values,) = mine
            parts[name] = values + failed_b[:, None]
        # 3. Their sum, with weights.
        total = sum(weight * parts[name] for name, weight in self.reward.weights.items())
        return jnp.asarray(total), parts

    def seconds(self) -> float:
        """What the host has spent since the last call of this."""
        spent, self._seconds = self._seconds, 0.0
        return spent

    def leave(self) -> None:
        """The run is to end: a reward that hangs is waited for a few seconds only."""
        self._limit.leave()

    def raise_if_failed(self) -> None:
        """Raises, once, the first exception that a call of the reward has raised."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _by_shards(self, *operands: Array) -> list[Array]:
        """`_ask_host`, where the images are split over a mesh."""
        mesh = self._mesh
        assert mesh is not None
        split = tuple(axis for axis in mesh.axis_names if axis in BATCH_AXES)
        others = tuple(axis for axis in mesh.axis_names if axis not in BATCH_AXES)
        n_shards = math.prod(mesh.shape[axis] for axis in split)
        _check_mesh(mesh, n_shards, len(operands[0]), max(x.nbytes for x in operands))

        def ask(*operands: Array) -> list[Array]:
            if n_shards == mesh.size:
                return self._ask_host(*operands)
            results = self._results(*operands[2].shape)
            found = jax.lax.cond(  # one of the devices that share these rows asks for all of them
                jax.lax.axis_index(others) == 0,
                self._ask_host,
                lambda *_: [jnp.zeros(x.shape, x.dtype) for x in results],
                *operands,
            )
            return [jax.lax.psum(x, others).astype(x.dtype) for x in found]

        by_image = PartitionSpec(split)
        # A callback has no rule for replication checks.
        return jax.shard_map(
            ask, mesh=mesh, in_specs=by_image, out_specs=by_image, check_vma=False
        )(*operands)

    def _ask_host(self, image_ids: Array, tokens: Array, lengths: Array) -> list[Array]:
        results = self._results(*lengths.shape)
        return jax.pure_callback(self._score, results, image_ids, tokens, lengths)

    def _results(self, batch: int, rows: int) -> list[jax.ShapeDtypeStruct]:
        """Of what the host returns: [B], 0 or NaN where it failed, then the arrays of each part."""
        of_parts = (x for name in self.reward.parts for x in self._results_of(name, batch, rows))
        return [jax.ShapeDtypeStruct((batch,), jnp.float32), *of_parts]

    def _results_of(self, name: str, batch: int, rows: int) -> list[jax.ShapeDtypeStruct]:
        if name not in self._device:
            return [jax.ShapeDtypeStruct((batch, rows), jnp.float32)]
        return [jax.ShapeDtypeStruct(*x) for x in self._device[name].shapes(batch, rows)]

    def _score(self, image_ids: Any, tokens: Any, lengths: Any) -> list[np.ndarray]:
        """Runs on the host, in a thread of XLA. Only numpy here: jnp would wait for that thread."""
        began = time.perf_counter()
        try:
            image_ids, tokens, lengths = map(np.asarray, (image_ids, tokens, lengths))
            if self._failure is not None:  # what follows is lost anyway
                raise self._failure
            asked = image_ids.astype(np.int64), tokens, lengths
            return self._limit.call(lambda: self._score_or_raise(*asked), lambda: self._part)
        except Exception as error:  # anything: it is raised again by raise_if_failed
            self._failure = self._failure or error
            flag, *others = self._results(*lengths.shape)
            nan = np.full(flag.shape, np.nan, np.float32)
            return [nan, *(np.zeros(x.shape, x.dtype) for x in others)]
        finally:
            self._seconds += time.perf_counter() - began

    def _score_or_raise(
        self, image_ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray
    ) -> list[np.ndarray]:
        last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[..., None], axis=2)[..., 0]
        ended = (lengths > 0) & np.isin(last, self._eos_ids)
        words = lengths - ended
        captions = [
            [self._decode(row[:count]) for row, count in zip(rows, counts, strict=True)]
            for rows, counts in zip(tokens.tolist(), words.tolist(), strict=True)
        ]
        found = [np.zeros(len(image_ids), np.float32)]
        for name, part in self.reward.parts.items():
            self._part = name
            if name in self._device:
                found += self._device[name].prepare(image_ids, captions)
            else:
                found.append(checked(part, image_ids, captions, ended))
        return found


def _check_mesh(mesh: jax.sharding.Mesh, n_shards: int, batch: int, operand_bytes: int) -> None:
    if batch % n_shards:
        raise UserError(
            f"a batch of {batch} images cannot be split over {n_shards} (the axes "
            f"{', '.join(BATCH_AXES)} of the mesh {dict(mesh.shape)}); use a multiple of {n_shards}"
        )
    per_shard = operand_bytes // n_shards
    if mesh.devices.flat[0].platform != "cpu" or per_shard < _CPU_OPERAND_LIMIT:
        return
    if int(os.environ.get("NPROC") or 0) < _CPU_POOL:
        raise UserError(
            f"reward operands of {per_shard} bytes per device would hang on {mesh.size} virtual "
            f"CPU devices; set NPROC={_CPU_POOL} in the environment before JAX starts, or stay "
            f"below {_CPU_OPERAND_LIMIT} bytes (smaller batch, or vocab_size given)"
        )
