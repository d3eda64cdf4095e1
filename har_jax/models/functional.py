"""Modules as functions of a flat dictionary of parameters.

`split(module)` gives a `Structure` (what the module is) and `{"lm.layers.0.attn.q.kernel": array}`
(what it holds). Whatever transforms, shards, optimises or saves parameters works on that plain
dictionary: names in checkpoints, tables and error messages are the same, and `jax.jit`, `jax.grad`
and optax need to know nothing of flax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from har_jax.sharding import RULES, LogicalAxes, Rules, sharding_of
from har_jax.types import Array

M = TypeVar("M", bound=nnx.Module)
Params = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure(Generic[M]):
    """A module without its arrays: rebuilds it from parameters, and knows their shapes and axes."""

    graphdef: nnx.GraphDef
    variables: Mapping[str, tuple[tuple, nnx.Variable]]  # name → path, abstract variable

    def merge(self, params: Mapping[str, Array]) -> M:
        """The module with these parameters; cheap, and meant to be called inside `jax.jit`."""
        flat = [(path, v.replace(params[name])) for name, (path, v) in self.variables.items()]
        return nnx.merge(self.graphdef, nnx.State.from_flat_path(flat))

    @property
    def names(self) -> list[str]:
        return list(self.variables)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: v.get_value() for name, (_, v) in self.variables.items()}

    @property
    def logical_axes(self) -> dict[str, LogicalAxes]:
        return {name: v.get_metadata()["logical_axes"] for name, (_, v) in self.variables.items()}

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> dict[str, NamedSharding]:
        shapes = self.shapes
        return {
            name: sharding_of(shapes[name].shape, axes, mesh, rules, name)
            for name, axes in self.logical_axes.items()
        }


def structure_of(build: Callable[[], M]) -> Structure[M]:
    """The structure of `build()`, without allocating a single parameter."""
    return _structure(nnx.eval_shape(build))


def split(module: M) -> tuple[Structure[M], Params]:
    _, state = nnx.split(module)
    params = {_name(path): v.get_value() for path, v in state.flat_state()}
    return _structure(module), params


def _structure(module: M) -> Structure[M]:
    graphdef, state = nnx.split(module)

    def abstract(v: nnx.Variable) -> nnx.Variable:
        value = v.get_value()
        return v.replace(jax.ShapeDtypeStruct(value.shape, value.dtype))

    return Structure(graphdef, {_name(path): (path, abstract(v)) for path, v in state.flat_state()})


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def initialise(
    build: Callable[[jax.Array], M], seed: int, mesh: Mesh | None = None, rules: Rules = RULES
) -> tuple[Structure[M], Params]:
    """Random parameters, each born in its shards: `build` takes a key, inside `jax.jit`."""
    structure = structure_of(lambda: build(jax.random.key(0)))
    out = None if mesh is None else structure.shardings(mesh, rules)
    make = jax.jit(lambda key: split(build(key))[1], out_shardings=out)
    return structure, make(jax.random.key(seed))


def prefixed(params: Mapping[str, Array], prefix: str) -> Params:
    """`{"q": …}` as part of a larger module: `{"lm.q": …}`."""
    return {f"{prefix}.{name}": value for name, value in params.items()}


def part(params: Mapping[str, Array], prefix: str) -> Params:
    """The parameters of one submodule, under the names that it gives them itself."""
    start = f"{prefix}."
    return {name[len(start) :]: v for name, v in params.items() if name.startswith(start)}
