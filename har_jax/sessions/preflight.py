"""A run compiled before it is paid for: does it fit, what travels, what bounds its speed.

The step is the one that `train` would run, lowered from a blueprint: shapes of parameters and
batches, no weights, no dataset, and devices that need only be described. A reward of the same
signature stands in for the one on the host.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from har_jax.config import Config, check_devices
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.hardware import GIB, device_memory
from har_jax.loading.blueprint import Blueprint, Shapes
from har_jax.sessions.budget import Budget, budget
from har_jax.sessions.collectives import Collective, collectives, in_decode_loop
from har_jax.sessions.meshes import choose_mesh
from har_jax.sessions.step import stage_loss, training_step
from har_jax.sharding import batch_sharding, divisible, replicated
from har_jax.types import Array

log = logging.getLogger(__name__)

Lowered = Callable[[Blueprint, Config, Mesh, str], Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, or why it could not be.

    Attributes:
      peak: bytes that a device needs at most; of one that was refused, what it would have needed.
      arguments: bytes that it is given: parameters, optimizer, batch.
      limit: bytes of a device; None where nobody can tell.
      seconds: to compile.
    """

    name: str
    fits: bool
    peak: float
    arguments: float
    limit: float | None
    seconds: float
    collectives: tuple[Collective, ...] = ()

    @property
    def shortfall(self) -> float:
        return max(0.0, self.peak - self.limit) if self.limit else 0.0

    @property
    def in_decode_loop(self) -> list[Collective]:
        """What travels for every token."""
        return in_decode_loop(self.collectives)


class StandInReward:
    """As long as a caption is: what the host would say has the same shape."""

    def __call__(
        self,
        image_ids: Array,
        tokens: Array,
        lengths: Array,
        params: Mapping[str, Array] | None = None,
        /,
    ) -> tuple[Array, dict[str, Array]]:
        del image_ids, params
        return lengths / tokens.shape[-1], {}


def _train(blueprint: Blueprint, config: Config, mesh: Mesh, platform: str) -> Any:
    loss_fn = stage_loss(blueprint, config, StandInReward())
    step = training_step(blueprint, config, loss_fn, mesh)
    batch = _spread(blueprint.batch(config), mesh)
    return _lower(step.function, platform, step.abstract, _frozen(blueprint, mesh), batch)


def _caption(blueprint: Blueprint, config: Config, mesh: Mesh, platform: str) -> Any:
    """Greedy captions, as validation and evaluation write them."""
    size = divisible(config.eval.batch_size, mesh)
    batch = blueprint.batch(dataclasses.replace(config, batch_size=size))
    key = "image" if "image" in batch else "features"
    structure, how = blueprint.structure, DecodeSettings()

    def write(params: dict[str, Array], images: Array) -> Array:
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(images)))
        return how.write(captioner, cache, config.data.max_tokens, jax.random.key(0)).tokens

    params = {**_frozen(blueprint, mesh), **blueprint.abstract_trained(mesh)}
    jitted = jax.jit(write, out_shardings=replicated(mesh))
    return _lower(jitted, platform, params, _spread({key: batch[key]}, mesh)[key])


PROGRAMS: dict[str, Lowered] = {"train": _train, "caption": _caption}


def _frozen(blueprint: Blueprint, mesh: Mesh) -> Shapes:
    shapes, shardings = blueprint.shapes, blueprint.shardings(mesh)
    learns = set(blueprint.trained)
    return {n: x.update(sharding=shardings[n]) for n, x in shapes.items() if n not in learns}


def _spread(shapes: Shapes, mesh: Mesh) -> Shapes:
    return {name: x.update(sharding=batch_sharding(mesh)) for name, x in shapes.items()}


def _lower(function: Any, platform: str, *arguments: Any) -> Any:
    return function.trace(*arguments).lower(lowering_platforms=(platform,))


def compile_program(name: str, blueprint: Blueprint, config: Config, mesh: Mesh) -> Program:
    """One of `PROGRAMS`, compiled for the devices of the mesh."""
    check_devices(config, mesh.size)
    device = mesh.devices.flat[0]
    platform = "cuda" if device.platform == "gpu" else str(device.platform)
    limit, began = device_memory(device), time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = PROGRAMS[name](blueprint.placed_on(mesh), config, mesh, platform)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _out_of_memory(str(error))
            if needed is None:
                raise
            peak = needed if limit is None else max(needed, limit)
            return Program(name, False, peak, 0, limit, time.perf_counter() - began)
    memory = compiled.memory_analysis()
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = max(given + memory.temp_size_in_bytes, getattr(memory, "peak_memory_in_bytes", 0) or 0)
    if platform == "tpu":  # temporaries are not told there, the peak is
        peak = memory.peak_memory_in_bytes
    fits = limit is None or peak <= limit
    seconds, moved = time.perf_counter() - began, tuple(collectives(compiled.as_text() or ""))
    return Program(name, fits, peak, memory.argument_size_in_bytes, limit, seconds, moved)


def _out_of_memory(message: str) -> float | None:
    """What a compiler that refuses says it would need; None where it refuses something else."""
    if "RESOURCE_EXHAUSTED" not in message and "exceeds" not in message.lower():
        return None
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    sizes = re.findall(r"([\d.]+)([KMGT])i?B?\b", message)
    return max((float(n) * units[unit] for n, unit in sizes), default=0.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What preflight found of a configuration on some devices."""

    config: Config
    blueprint: Blueprint
    mesh: Mesh
    budget: Budget
    programs: tuple[Program, ...]

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)


def examine(blueprint: Blueprint, config: Config, devices: Any, names: tuple[str, ...]) -> Verdict:
    """Compiles the programs of a configuration, until one does not fit."""
    blueprint = blueprint.changed(config.model)
    blueprint.config.check_places(config.data.max_tokens)
    mesh = choose_mesh(blueprint, config, devices)
    sizes = {f"mesh.{axis}": n for axis, n in mesh.shape.items()}
    config = config.changed(**sizes)
    programs: list[Program] = []
    for name in names:
        log.info("compiling %s for %s ...", name, dict(mesh.shape))
        programs.append(compile_program(name, blueprint, config, mesh))
        if not programs[-1].fits:
            break
    return Verdict(config, blueprint, mesh, budget(blueprint, config, mesh), tuple(programs))


def alternatives(config: Config, n_devices: int) -> Iterator[dict[str, Any]]:
    """Settings that need less memory, the least intrusive first."""
    rows = max(1, config.batch_size // max(1, n_devices))
    parts = [n for n in (2, 4, 8, 16) if n > config.microbatches and rows % n == 0]
    if n_devices > 1 and config.model.decode_weights == "gathered":
        yield {"model.decode_weights": "in_place"}
    for n in parts[:2]:
        yield {"microbatches": n}
    most = {"microbatches": parts[-1]} if parts else {}
    if config.model.remat != "full":
        yield {**most, "model.remat": "full"}
    least = {**most, "model.remat": "full", "model.decode_weights": "in_place"}
    if n_devices > 1:
        yield {**least, "mesh.data": 1, "mesh.fsdp": n_devices, "mesh.tensor": 1}
    if n_devices % 4 == 0 and n_devices > 4:
        yield {**least, "mesh.data": 1, "mesh.fsdp": n_devices // 4, "mesh.tensor": 4}
    if not config.model.trains_base and config.model.frozen_dtype == "float32":
        yield {**least, "model.frozen_dtype": "bfloat16"}
    if config.model.trains_base:
        yield {**least, "model.lora.rank": 16, "model.frozen_dtype": "bfloat16"}


def what_fits(
    blueprint: Blueprint,
    config: Config,
    devices: Any,
    names: tuple[str, ...],
    seconds: float,
) -> tuple[dict[str, Any], Verdict] | None:
    """The first of `alternatives` that fits, found by compiling them until time is over."""
    began = time.perf_counter()
    for settings in alternatives(config, len(devices)):
        if time.perf_counter() - began > seconds:
            return None
        changed = config.changed(**settings)
        try:
            log.info("trying %s", settings_text(settings))
            verdict = examine(blueprint, changed, devices, names)
        except UserError as error:  # such a mesh, or such a division, is not possible
            log.info("  not possible: %s", error)
            continue
        if verdict.fits:
            return settings, verdict
    return None


def settings_text(settings: Mapping[str, Any]) -> str:
    """As a user would type them."""
    return " ".join(f"--config.{key}={value}" for key, value in settings.items())
