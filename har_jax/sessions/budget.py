"""What a run puts on each device, and the least time that a step takes, by arithmetic alone.

What is kept from step to step, and what a step cannot do without, follows from shapes and
shardings; activations are the compiler's affair (`sessions/preflight.py` asks it). `train` refuses
a run whose sum is already too large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from har_jax.config import Config
from har_jax.decoding.weights import gathered_bytes
from har_jax.errors import UserError
from har_jax.hardware import GIB, Chip, chip_of, device_memory
from har_jax.loading.blueprint import Blueprint
from har_jax.models.attention import KVCache
from har_jax.models.quantised import dense_sizes, is_part
from har_jax.objectives.self_critical import rollout_plan
from har_jax.sharding import ROLLOUT_RULES, RULES, batch_shards
from har_jax.training.optimizer import make_optimizer
from har_jax.training.step import optimizer_shardings


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes on each device.

    Attributes:
      kept: from step to step: parameters, optimizer.
      made: by every step, whatever else it makes: gradients, caches, weights for decoding.
    """

    kept: dict[str, float]
    made: dict[str, float]

    @property
    def total(self) -> float:
        """What is needed at once: gradients and a rollout's weights are not there together."""
        rollout = sum(size for name, size in self.made.items() if name.startswith("rollout"))
        rest = sum(size for name, size in self.made.items() if not name.startswith("rollout"))
        return sum(self.kept.values()) + max(rollout, rest)


def shard_bytes(
    shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, jax.sharding.Sharding]
) -> int:
    """Of arrays, on each device."""
    return sum(
        math.prod(shardings[name].shard_shape(x.shape)) * x.dtype.itemsize
        for name, x in shapes.items()
    )


def budget(blueprint: Blueprint, config: Config, mesh: Mesh) -> Budget:
    """What a training run of `config` puts on each device of the mesh."""
    shapes, shardings = blueprint.shapes, blueprint.shardings(mesh)
    learns = set(blueprint.trained)
    trained = {name: x for name, x in shapes.items() if name in learns}
    frozen = {name: x for name, x in shapes.items() if name not in learns}
    own = {name: shardings[name] for name in trained}
    rule = make_optimizer(config.optim, {name: blueprint.logical_axes[name] for name in trained})
    moments = jax.tree.leaves(jax.eval_shape(rule.init, trained))
    places = jax.tree.leaves(optimizer_shardings(rule, trained, own, mesh))
    kept: dict[str, float] = {
        "trained parameters": shard_bytes(trained, own),
        "frozen parameters": shard_bytes(frozen, {name: shardings[name] for name in frozen}),
        "optimizer": sum(
            math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
            for x, place in zip(moments, places, strict=True)
        ),
    }
    made: dict[str, float] = {"gradients": kept["trained parameters"]}
    rows = config.batch_size / batch_shards(mesh)
    if config.stage == "scst":
        plan = rollout_plan(config.scst, config.data.max_tokens)
        a_token = cache_bytes_per_token(blueprint, mesh)
        made["rollout: prefix cache"] = a_token * rows * prefix_length(blueprint)
        made["rollout: caption cache"] = a_token * rows * plan.rows * plan.max_tokens
        made["rollout: weights"] = decode_weights_bytes(blueprint, mesh)
    return Budget(kept, made)


def decode_weights_bytes(blueprint: Blueprint, mesh: Mesh) -> float:
    """Of the copy that a decode loop reads, where it makes one."""
    model, shapes = blueprint.model, blueprint.shapes
    axes, dtype = blueprint.logical_axes, jnp.dtype(blueprint.model.dtype)
    in_place = blueprint.placed_on(mesh).model.decode_weights == "in_place"
    split_over = mesh.shape["fsdp"] > 1 and not in_place
    same = model.dense_frozen_dtype == model.dtype and not model.trains_base
    if same and not split_over and not model.scan_layers:
        return 0  # what is frozen is read where it lies
    if not split_over:  # quantised kernels too, in a stack or not
        shapes = {name: x for name, x in shapes.items() if not is_part(name)}
    return gathered_bytes(shapes, axes, dtype, mesh, RULES if in_place else ROLLOUT_RULES)


def prefix_length(blueprint: Blueprint) -> int:
    """P, with BOS and prompt."""
    return blueprint.config.prefix_length


def cache_bytes_per_token(blueprint: Blueprint, mesh: Mesh) -> float:
    """Keys and values of all layers for one place, on the devices that split its heads."""

    def cache() -> KVCache:
        decoder = blueprint.structure.merge(blueprint.shapes).lm
        return decoder.empty_cache(1, 1, 1, jnp.dtype(blueprint.model.dtype))

    arrays = jax.tree.leaves(jax.eval_shape(cache))
    heads, tensor = arrays[0].shape[2], mesh.shape["tensor"]
    whole = sum(x.size * x.dtype.itemsize for x in arrays)
    return whole / (tensor if heads % tensor == 0 else 1)


def refuse_if_too_large(found: Budget, mesh: Mesh) -> None:
    """`UserError` where what a run must hold is more than the devices have."""
    memory = device_memory(mesh.devices.flat[0])
    if memory is None or found.total <= memory:
        return
    parts = sorted({**found.kept, **found.made}.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size > 0.05 * GIB)
    raise UserError(
        f"this run needs at least {found.total / GIB:.1f} GiB on each device, which has "
        f"{memory / GIB:.1f} ({told}); ask python -m har_jax.preflight for what fits: more "
        "config.mesh.fsdp or tensor, config.model.lora.rank, config.model.frozen_dtype=bfloat16"
    )


# ------------------------------------------------------------------------------- floors


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a step: what it must compute and read on each device, at the least.

    Attributes:
      bytes: of weights, read while products are made of them.
      caches: bytes of keys and values, which attention reads by itself.
    """

    flops: float
    bytes: float
    caches: float = 0.0

    def seconds(self, chip: Chip) -> float:
        products = max(self.flops / chip.flops, self.bytes / chip.bandwidth)
        return products + self.caches / chip.bandwidth

    def bound(self, chip: Chip) -> str:
        """What it waits for."""
        by_flops = self.flops / chip.flops >= self.bytes / chip.bandwidth
        return "products" if by_flops else "memory"


def floors(blueprint: Blueprint, config: Config, mesh: Mesh) -> dict[str, Phase]:
    """The phases of a step (../docs/performance.md, "Floors"): two operations for each number of
    a matrix and token forward, four backward where matrices learn, two where they do not."""
    sizes, n = dense_sizes(blueprint.shapes), mesh.size

    def matrices(prefix: str) -> float:
        return sum(
            size
            for name, size in sizes.items()
            if name.startswith(prefix) and name.endswith("kernel")
        )

    dtype = jnp.dtype(blueprint.model.dtype)
    tied = blueprint.config.lm.vocab_size * _width(blueprint)
    head = max(matrices("lm.lm_head"), tied)
    body = matrices("lm.") - matrices("lm.lm_head")
    b, t, p = config.batch_size, config.data.max_tokens, prefix_length(blueprint)
    scst = config.stage == "scst"
    plan = rollout_plan(config.scst, t) if scst else None
    scored = b * (config.scst.samples if scst else config.data.captions_per_image) * t
    learning = blueprint.model.trains_base
    factor = (6 if learning else 4) + (2 if blueprint.model.remat == "full" else 0)
    all_bytes = _bytes_read(blueprint.shapes, dtype)
    all_bytes += 0 if matrices("lm.lm_head") else tied * dtype.itemsize
    weight_bytes = all_bytes / n
    phases = {}
    vision = blueprint.config.vision
    if vision is not None and not config.data.features:
        tokens = b * (vision.n_patches + vision.n_extra)
        phases["encode"] = Phase(2 * matrices("vision.") * tokens / n, 0)
    phases["prefill"] = Phase(2 * body * b * p / n, weight_bytes)
    if plan is not None:
        rows = b * plan.rows
        tensor = mesh.shape["tensor"]
        in_place = blueprint.placed_on(mesh).model.decode_weights == "in_place"
        read = all_bytes / (n if in_place else tensor)
        cache = cache_bytes_per_token(blueprint, mesh) * (b * p + rows * t / 2) / batch_shards(mesh)
        phases["rollout"] = Phase(2 * (body + head) * rows * t / n, t * read, t * cache)
    backward = factor * (body * (b * p + scored) + head * scored) - 2 * body * b * p
    phases["update"] = Phase(backward / n, weight_bytes)
    return phases


def peak_seconds(blueprint: Blueprint, config: Config, mesh: Mesh) -> float | None:
    """What a step's products would take if the devices did nothing else; None of unknown ones.

    What rematerialisation computes again is no part of it: it is the model's work that counts.
    """
    chip = chip_of(mesh.devices.flat[0])
    if chip is None:
        return None
    model = dataclasses.replace(blueprint.model, remat="none")
    phases = floors(blueprint.changed(model), config, mesh).values()
    return sum(phase.flops for phase in phases) / chip.flops


def _bytes_read(shapes: Mapping[str, jax.ShapeDtypeStruct], dtype: jnp.dtype) -> float:
    """Of the decoder's matrices once over: of quantised ones the codes and scales."""
    kernels = {name: x for name, x in shapes.items() if name.startswith("lm.")}
    return sum(
        x.size * (x.dtype if is_part(name) else dtype).itemsize
        for name, x in kernels.items()
        if is_part(name) or name.endswith("kernel")
    )


def _width(blueprint: Blueprint) -> int:
    return blueprint.config.lm.hidden_size
