"""Attention of sequences that read nothing but themselves, by JAX's splash kernel for TPUs.

No score leaves the chip's own memory: where the products by themselves write `[B,N,T,T]` numbers of
32 bits and read them twice, the kernel goes through blocks of queries and keys (Dao et al.,
FlashAttention-2, 2023) and leaves out those that a mask hides whole.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from har_jax.sharding import activation_spec, mesh_in_context
from har_jax.types import Float

_LANES = 128  # of a TPU's vectors: lengths are multiples of it
_BLOCKS = (512, 384, 256, 128)  # of queries and of keys; the largest that divides a length


def splash_attention(
    q_btnh: Float[jax.Array, "B T N H"],
    k_btkh: Float[jax.Array, "B T K H"],
    v_btkh: Float[jax.Array, "B T K H"],
    *,
    causal: bool,
    window: int | None = None,
    interpret: bool = False,
) -> Float[jax.Array, "B T N H"]:
    """Softmax attention, scaled by `H ** -0.5`; on a mesh each device has its own images and heads.

    Args:
      window: keys so many places back are seen no more; None: all that are not in the future.
      interpret: computes it without a TPU, for tests.
    """
    local = functools.partial(_local, causal=causal, window=window, interpret=interpret)
    mesh = mesh_in_context()
    if mesh is None:
        return local(q_btnh, k_btkh, v_btkh)
    # Queries go where the keys are that they read: K is what the devices have to divide.
    spec = activation_spec(k_btkh.shape, ("batch", None, "heads", None), mesh)
    split = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return split(q_btnh, k_btkh, v_btkh)


def _local(
    q_btnh: Float[jax.Array, "B T N H"],
    k_btkh: Float[jax.Array, "B T K H"],
    v_btkh: Float[jax.Array, "B T K H"],
    *,
    causal: bool,
    window: int | None,
    interpret: bool,
) -> Float[jax.Array, "B T N H"]:
    t, n, h = q_btnh.shape[1:]
    padding = -t % _LANES
    size = t + padding

    # 1. Heads first, at a length that the kernel takes; a score of padding is hidden by its number.
    def laid_out(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    q, k, v = laid_out(q_btnh * h**-0.5), laid_out(k_btkh), laid_out(v_btkh)
    part = jnp.asarray(np.arange(size) >= t, jnp.int32)
    parts = kernels.SegmentIds(part, part) if padding else None

    # 2. What a query sees, the same in every head and image.
    if causal and window is not None and window < t:
        mask = kernels.LocalMask((size, size), (window - 1, 0), 0)
    else:
        mask = kernels.CausalMask((size, size)) if causal else kernels.FullMask((size, size))
    block = next(b for b in _BLOCKS if size % b == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    masks, blocks = kernels.MultiHeadMask([mask] * n), kernels.BlockSizes(**sizes)
    make = kernels.make_splash_mha_single_device
    kernel: Any = make(masks, block_sizes=blocks, interpret=interpret)

    # 3. Image by image.
    out_bnth = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, parts)
    return out_bnth[:, :, :t].swapaxes(1, 2).astype(q_btnh.dtype)
