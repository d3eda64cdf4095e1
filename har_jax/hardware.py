"""What is known of chips: their memory, and how fast they multiply and read; memory on CPUs.

Figures are those of the makers' data sheets (docs/performance.md, "Floors"); the memory of TPUs is
what their compiler leaves to a program. `python -m har_jax.preflight` reckons with them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from typing import Any, Literal

GIB = 2**30
Platform = Literal["tpu", "cuda", "cpu"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      kind: JAX's `device_kind`.
      memory: bytes that a program may use.
      flops: of bfloat16 products, a second.
      bandwidth: of its memory, bytes a second.
      link: to its neighbours, bytes a second, both ways together.
    """

    name: str
    kind: str
    platform: Platform
    memory: float
    flops: float
    bandwidth: float
    link: float


CHIPS = (
    Chip("v4", "TPU v4", "tpu", 31.75 * GIB, 137.5e12, 614e9, 300e9),
    Chip("v5e", "TPU v5 lite", "tpu", 15.75 * GIB, 197e12, 819e9, 200e9),
    Chip("v5p", "TPU v5", "tpu", 95.74 * GIB, 459e12, 2765e9, 600e9),
    Chip("v6e", "TPU v6 lite", "tpu", 31.25 * GIB, 918e12, 1640e9, 448e9),
    Chip("tpu7x", "TPU7x", "tpu", 94.75 * GIB, 1153e12, 3690e9, 600e9),
    Chip("a100", "NVIDIA A100-SXM4-80GB", "cuda", 74 * GIB, 312e12, 2039e9, 600e9),
    Chip("h100", "NVIDIA H100 80GB HBM3", "cuda", 74 * GIB, 989e12, 3352e9, 900e9),
    Chip("h200", "NVIDIA H200", "cuda", 131 * GIB, 989e12, 4800e9, 900e9),
    Chip("l4", "NVIDIA L4", "cuda", 20.5 * GIB, 121e12, 300e9, 64e9),
    Chip("rtx4090", "NVIDIA GeForce RTX 4090", "cuda", 22 * GIB, 165e12, 1008e9, 64e9),
)
"""The memory of GPUs is less by what the driver, cuBLAS and fragmentation take."""


def chip_of(device: Any) -> Chip | None:
    """What is known of a JAX device, there or only described; None of CPUs and unknown kinds."""
    kind = getattr(device, "device_kind", "")
    return next((chip for chip in CHIPS if chip.kind == kind), None)


def device_memory(device: Any) -> float | None:
    """Bytes that a program may use on a device; None where nobody can tell, as on CPUs."""
    try:
        stats = device.memory_stats() or {}
    except Exception:  # a device that is only described has none
        stats = {}
    chip = chip_of(device)
    return stats.get("bytes_limit") or (chip.memory if chip else None)


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**31 - 1  # bytes of freed memory at the end of the heap that are not given back


def keep_memory() -> None:
    """Lets this process keep memory from step to step where JAX computes on the CPU. For commands,
    before they ask JAX for a device; a program that imports har_jax does as it likes.

    XLA asks for a step's temporaries anew in every step, hundreds of megabytes, and glibc gives
    blocks of that size back to the system each time: a sixth of a run's processor time
    (docs/performance.md). Here they come from the heap, of which up to 2 GiB are kept. Only the
    main thread's heap grows without bounds: so programs run in the thread that calls them, not in
    one of JAX's. Whoever has set glibc's variables knows better.
    """
    given = (name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if not sys.platform.startswith("linux") or any(given):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl's C library
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 1 << 26)):
        mallopt(option, value)
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
