"""The mesh of a run: as it is configured, or, with `config.mesh.auto`, by what devices can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from har_jax.config import Config, check_devices
from har_jax.errors import UserError
from har_jax.hardware import device_memory
from har_jax.loading.blueprint import Blueprint
from har_jax.models.attention import KERNELS
from har_jax.sessions.budget import budget
from har_jax.sharding import MESH_AXES, resolve_mesh_shape

SHARE = 0.6
"""Of a device's memory, what an automatic mesh lets a run hold; activations need the rest."""


def mesh_over(devices: Any, config: Config) -> Mesh:
    """A mesh of the configured sizes over devices that may only be described.

    Raises:
      UserError: the sizes do not fit their number, or a TPU's wiring.
    """
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    shape = resolve_mesh_shape(sizes, len(devices))
    try:
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    except (NotImplementedError, ValueError) as error:
        text = " x ".join(f"{axis}={n}" for axis, n in zip(MESH_AXES, shape, strict=True))
        raise UserError(
            f"mesh {text} does not lie on the wiring of these {len(devices)} devices: each of its "
            "axes must be a product of theirs (on 4x4: 1, 4 or 16); set config.mesh"
        ) from error


def choose_mesh(blueprint: Blueprint, config: Config, devices: Sequence[Any]) -> Mesh:
    """The mesh of a run: of automatic ones the first, least split, whose devices hold the run in
    `SHARE` of their memory, or else the one on which they hold least.

    Raises:
      UserError: as `mesh_over`; the batch divides no mesh of these devices; or they do not have the
        kernel of `config.model.attention`.
    """
    kernel, platform = config.model.attention, devices[0].platform
    if KERNELS.get(kernel, platform) != platform:
        raise UserError(
            f"config.model.attention={kernel} is a kernel for {KERNELS[kernel].upper()}s, and the "
            f"devices are {platform.upper()}s; set --config.model.attention=blocks"
        )
    if not config.mesh.auto:
        return mesh_over(devices, config)
    memory = device_memory(devices[0])
    found: list[tuple[float, Mesh]] = []
    refused: UserError | None = None
    for data, fsdp, tensor in _sizes(len(devices)):
        sizes = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
        changed = config.changed(**sizes)
        try:
            check_devices(changed, len(devices))
            mesh = mesh_over(devices, changed)
        except UserError as error:
            refused = refused or error
            continue
        held = budget(blueprint, changed, mesh).total
        if memory is None or held <= SHARE * memory:
            return mesh
        found.append((held, mesh))
    if not found:
        assert refused is not None
        raise refused
    return min(found, key=lambda one: one[0])[1]


def _sizes(n: int) -> Iterator[tuple[int, int, int]]:
    """Whole replicas first, then shards of them, then products that are split as well."""
    yield n, 1, 1
    for tensor in (1, 2, 4, 8):
        if n % tensor == 0 and n > 1:
            yield 1, n // tensor, tensor
