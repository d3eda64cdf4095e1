"""Where parameters and activations live on a device mesh.

Parameters name their *logical* axes (`("embed", "mlp")`); one table of rules maps these to the mesh
axes `data`, `fsdp` and `tensor`. `jax.jit` with the resulting `NamedSharding`s is what pjit became.

    data    replicas of the parameters, each with its own part of the batch
    fsdp    parameters split, gathered layer by layer; the batch is split too
    tensor  heads and hidden units split; the batch is not
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from har_jax.errors import UserError, did_you_mean
from har_jax.types import Array

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

LogicalAxes = tuple[str | None, ...]
Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    "embed": "fsdp",  # the residual width D, and the vision tower's
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "patch": None,
    "position": None,
    "projection": None,
    "lora": None,
    "layers": None,  # of stacked parameters: a scan takes one layer at a time
}
"""Training: ZeRO-3 style over `fsdp`, Megatron style over `tensor`."""

ROLLOUT_RULES: Rules = {**RULES, "embed": None}
"""Decoding: the same without `fsdp`. Gathering fsdp shards for every token would cost more than the
step itself, so a rollout reshards its weights once, before the loop."""


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A `data × fsdp × tensor` mesh over all devices of all processes; one size may be -1."""
    n_devices = jax.device_count()
    sizes = dict(zip(MESH_AXES, resolve_mesh_shape((data, fsdp, tensor), n_devices), strict=True))
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def resolve_mesh_shape(shape: Sequence[int], n_devices: int) -> tuple[int, ...]:
    """Fills in a single -1 so that the product is `n_devices`; `UserError` if it cannot be."""
    text = " x ".join(f"{a}={n}" for a, n in zip(MESH_AXES, shape, strict=True))
    if any(n == 0 or n < -1 for n in shape) or sum(n == -1 for n in shape) > 1:
        raise UserError(
            f"mesh {text}: sizes must be positive, and at most one of them -1 (all the rest); "
            "set config.mesh.data, config.mesh.fsdp and config.mesh.tensor"
        )
    known = math.prod(n for n in shape if n > 0)
    filled = tuple(n_devices // known if n == -1 else n for n in shape)
    if math.prod(filled) != n_devices:
        raise UserError(
            f"mesh {text} does not fit {n_devices} device(s): the product of its sizes must be "
            f"{n_devices}; use -1 for one of them to take the rest"
        )
    return filled


def partition_spec(axes: LogicalAxes, rules: Rules = RULES, name: str = "") -> PartitionSpec:
    """The mesh axes of a parameter with these logical axes.

    Raises `UserError` for a logical axis without a rule and for two axes on one mesh axis.
    """
    entries: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis in axes:
        if axis is None:
            entries.append(None)
            continue
        if axis not in rules:
            raise UserError(
                f"parameter {name or axes}: no sharding rule for the logical axis {axis!r}"
                f"{did_you_mean(axis, rules)}; known: {', '.join(sorted(rules))}"
            )
        target = rules[axis]
        mesh_axes = () if target is None else (target,) if isinstance(target, str) else target
        clash = used.intersection(mesh_axes)
        if clash:
            raise UserError(
                f"parameter {name or axes}: two of its axes {axes} would be split over the mesh "
                f"axis {sorted(clash)[0]!r}; change the rule of one of them"
            )
        used.update(mesh_axes)
        entries.append(target)
    return PartitionSpec(*entries)


def fitting_spec(
    shape: Sequence[int],
    axes: LogicalAxes,
    mesh: Mesh | AbstractMesh,
    rules: Rules = RULES,
    name: str = "",
) -> PartitionSpec:
    """`partition_spec` on a mesh. An axis that the mesh axis does not divide is left whole.

    (A mini model's 5 heads on 2 devices, or a 50,257-word vocabulary on 4: correct, if not split.)
    """
    spec = partition_spec(axes, rules, name)
    entries = [
        entry if entry is None or size % _mesh_size(mesh, entry) == 0 else None
        for size, entry in zip(shape, spec, strict=True)
    ]
    return PartitionSpec(*entries)


def sharding_of(
    shape: Sequence[int], axes: LogicalAxes, mesh: Mesh, rules: Rules = RULES, name: str = ""
) -> NamedSharding:
    """`fitting_spec` as a sharding of the mesh."""
    return NamedSharding(mesh, fitting_spec(shape, axes, mesh, rules, name))


def _mesh_size(mesh: Mesh | AbstractMesh, entry: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over `data` and `fsdp` along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split; its size must be a multiple of it."""
    return _mesh_size(mesh, tuple(axis for axis in BATCH_AXES if axis in mesh.shape))


def divisible(size: int, mesh: Mesh) -> int:
    """A batch's size, rounded up to what the mesh divides."""
    shards = batch_shards(mesh)
    return -(-size // shards) * shards


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


_ACTIVATION_RULES: Rules = {
    "batch": BATCH_AXES,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def constrain(x: Array, *axes: str | None) -> Array:
    """Keeps an activation on its logical axes (`"batch"`, `"heads"`, `"mlp"`, `"vocab"`, or None).

    Reads the mesh that `jax.set_mesh` put in context; without one, or on one device, a no-op.
    Trailing axes may be left out. An axis that the mesh does not divide is left to the compiler.
    """
    return constrain_param(x, (*axes, *[None] * (x.ndim - len(axes))), _ACTIVATION_RULES)


def activation_spec(
    shape: Sequence[int], axes: LogicalAxes, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """`fitting_spec` of an activation, as `constrain` places it."""
    return fitting_spec(shape, axes, mesh, _ACTIVATION_RULES)


def constrain_param(x: Array, axes: LogicalAxes, rules: Rules, name: str = "") -> Array:
    """Places a parameter by its logical axes and `rules` on the mesh in context, as `constrain`."""
    mesh = mesh_in_context()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, fitting_spec(x.shape, axes, mesh, rules, name))


def vocabulary_parts(size: int) -> int:
    """Into how many parts the mesh in context splits logits of a vocabulary of this size."""
    mesh = mesh_in_context()
    return 1 if mesh is None or size % mesh.shape["tensor"] else mesh.shape["tensor"]


def batch_parts(size: int) -> int:
    """Into how many parts the mesh in context splits a batch of this size."""
    mesh = mesh_in_context()
    return 1 if mesh is None or size % batch_shards(mesh) else batch_shards(mesh)


def mesh_in_context() -> AbstractMesh | None:
    """The mesh that `jax.set_mesh` put in context; None where there is nothing to be placed: no
    mesh, one device, other axes, or inside `shard_map`, where arrays are local already."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return None if any(t == AxisType.Manual for t in mesh.axis_types) else mesh
