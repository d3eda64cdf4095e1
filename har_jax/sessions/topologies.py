"""Devices that are there, or only described: what `--topology` names.

    v5e:4x4  v5p:4x4x4  v6e:2x4  tpu7x:2x2x1   TPUs, by the shape of their slice
    v5litepod-16  v5e-16  v5p-128  v6e-16       the same by the names under which they are rented
    h100:8  a100:4  h200:1                      GPUs of one machine
    cpu:8                                       virtual devices

TPUs are described by libtpu, GPUs by the CUDA plugin; neither needs the hardware.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from har_jax.errors import UserError, did_you_mean
from har_jax.hardware import CHIPS, Chip

FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
DEEP = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
"""The shapes in which slices of so many chips are rented."""

RENTED = {
    "v5litepod": ("v5e", 1),
    "v5e": ("v5e", 1),
    "v6e": ("v6e", 1),
    "v5p": ("v5p", 2),
    "v4": ("v4", 2),
    "tpu7x": ("tpu7x", 1),
}
"""What the number after the name counts: chips, or (v4, v5p) halves of chips."""

EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1, v5litepod-16, h100:8, a100:8, cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """What `--topology` names.

    Attributes:
      shape: of a TPU slice ("4x4"), or a number of devices.
    """

    chip: Chip | None  # None: CPUs
    shape: str

    @property
    def platform(self) -> str:
        return "cpu" if self.chip is None else self.chip.platform

    def __str__(self) -> str:
        return f"{self.chip.name if self.chip else 'cpu'}:{self.shape}"


def parse(text: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: there is no such chip or shape.
    """
    chips = {chip.name: chip for chip in CHIPS}
    if rented := re.fullmatch(r"([a-z0-9]+)-(\d+)", text):
        name, count = rented[1], int(rented[2])
        if name in RENTED:
            kind, per_chip = RENTED[name]
            shapes = FLAT if kind in ("v5e", "v6e") else DEEP
            if count % per_chip == 0 and count // per_chip in shapes:
                return Topology(chips[kind], shapes[count // per_chip])
            sizes = ", ".join(f"{name}-{n * per_chip}" for n in shapes)
            raise UserError(f"--topology={text}: slices of {name} are {sizes}")
    name, _, shape = text.partition(":")
    if name == "cpu" and re.fullmatch(r"\d+", shape) and int(shape):
        return Topology(None, shape)
    if name not in chips:
        hint = did_you_mean(name, [*chips, "cpu"])
        raise UserError(
            f"--topology={text}: {name!r} is unknown{hint}; known are {', '.join(chips)} and cpu: "
            f"{EXAMPLES}"
        )
    chip = chips[name]
    wanted = r"\d+(x\d+){1,2}" if chip.platform == "tpu" else r"\d+"
    if not re.fullmatch(wanted, shape):
        kind = f"{name}:4x4" if chip.platform == "tpu" else f"{name}:8"
        raise UserError(f"--topology={text}: give a shape after {name}, such as {kind}")
    return Topology(chip, shape)


def prepare_environment(topology: Topology | None) -> None:
    """What must be set before JAX looks for devices."""
    if topology is None:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # a described device is not looked for
    if topology.chip is None:
        flag = f"--xla_force_host_platform_device_count={topology.shape}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        os.environ.setdefault("NPROC", "32")
    elif topology.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    else:  # without a device nothing is tuned, and Triton's default tiles fail on some products
        flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def describe(topology: Topology | None) -> Any:
    """The devices, as an array to make a mesh of: those that are there for None.

    Raises:
      UserError: what describes them is not installed, or knows no such shape.
    """
    import jax
    from jax.experimental import topologies

    if topology is None or topology.chip is None:
        return jax.devices()
    tpu = topology.platform == "tpu"
    modules = ["libtpu"] if tpu else ["jax_cuda12_plugin", "jax_cuda13_plugin"]
    if not any(importlib.util.find_spec(name) for name in modules):
        extra = "preflight-tpu" if tpu else "preflight-gpu"
        raise UserError(
            f"--topology={topology}: {' or '.join(modules)} is not installed, which compiles for "
            f"it; pip install 'har_jax[{extra}]'"
        )
    options: dict[str, Any] = {}
    name = str(topology)
    if not tpu:
        name = topology.chip.name
        options = {"target_config": _gpu(topology.chip), "topology": f"1x1x{topology.shape}"}
    elif math.prod(map(int, topology.shape.split("x"))) == 1:
        options = {"chips_per_host_bounds": [1, 1, 1]}
    try:
        return topologies.get_topology_desc(name, topology.platform, **options).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={topology} is not one that the compiler knows ({reason}); try {EXAMPLES}"
        ) from error


def _gpu(chip: Chip) -> str:
    """XLA's description of a GPU, as text."""
    major, minor, cores, shared, opt_in, l2 = {
        "a100": (8, 0, 108, 167_936, 166_912, 41_943_040),
        "l4": (8, 9, 58, 102_400, 101_376, 50_331_648),
        "rtx4090": (8, 9, 128, 102_400, 101_376, 75_497_472),
    }.get(chip.name, (9, 0, 132, 233_472, 232_448, 52_428_800))
    return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores}
      fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {l2}
      clock_rate_ghz: 1.98 device_memory_size: {int(chip.memory)}
      shared_memory_per_block_optin: {opt_in}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 8 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "{chip.kind}"
    """
