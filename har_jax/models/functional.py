"""Modules as functions of a flat dictionary of parameters.

`split(module)` gives a `Structure` (what the module is) and `{"lm.layers.0.attn.q.kernel": array}`
(what it holds). Whatever transforms, shards, optimises or saves parameters works on that plain
dictionary: names in checkpoints, tables and error messages are the same, and `jax.jit`, `jax.grad`
and optax need to know nothing of flax.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from har_jax.sharding import RULES, LogicalAxes, Rules, sharding_of
from har_jax.types import Array

M = TypeVar("M", bound=nnx.Module)
N = TypeVar("N", bound=nnx.Module)
V = TypeVar("V")
Params = dict[str, Array]

LAYERS = "layers"
"""The logical axis along which `stack` lays the parameters of equal modules."""


@dataclasses.dataclass(frozen=True, eq=False)
class Structure(Generic[M]):
    """A module without its arrays: rebuilds it from parameters, and knows their shapes and axes."""

    graphdef: nnx.GraphDef
    variables: Mapping[str, tuple[tuple, nnx.Variable]]  # name → path, abstract variable

    def merge(self, params: Mapping[str, Any]) -> M:
        """The module with these parameters; cheap, and meant to be called inside `jax.jit`."""
        flat = [(path, v.replace(params[name])) for name, (path, v) in self.variables.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: v.get_value() for name, (_, v) in self.variables.items()}

    @property
    def logical_axes(self) -> dict[str, LogicalAxes]:
        return {name: v.get_metadata()["logical_axes"] for name, (_, v) in self.variables.items()}

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> dict[str, NamedSharding]:
        shapes, axes = self.shapes, self.logical_axes
        return {n: sharding_of(x.shape, axes[n], mesh, rules, n) for n, x in shapes.items()}

    def map(self, change: Callable[[M], N]) -> Structure[N]:
        """The structure of `change(module)`, without computing any of it."""
        return _structure(nnx.eval_shape(lambda p: change(self.merge(p)), self.shapes))

    def stacked(self, n: int) -> Structure[M]:
        """That of n such modules as one: every parameter with a leading axis `layers`."""
        return self._with(lambda x, axes: ((n, *x.shape), (LAYERS, *axes)))

    def unstacked(self) -> Structure[M]:
        """That of one of the modules that `stacked` made one."""
        return self._with(lambda x, axes: (x.shape[1:], axes[1:]))

    def marked(self, names: Collection[str], **metadata: Any) -> Structure[M]:
        """The same, with more metadata on some of its parameters, for the layers that read them."""
        variables = dict(self.variables)
        for name in names:
            path, v = variables[name]
            variables[name] = path, v.replace(v.get_value(), **metadata)
        return Structure(self.graphdef, variables)

    def _with(self, change: Callable[[Any, LogicalAxes], tuple]) -> Structure[M]:
        variables = {}
        for name, (path, v) in self.variables.items():
            shape, axes = change(v.get_value(), v.get_metadata()["logical_axes"])
            value = jax.ShapeDtypeStruct(shape, v.get_value().dtype)
            variables[name] = path, v.replace(value, logical_axes=axes)
        return Structure(self.graphdef, variables)


_ONLY_SHAPES = contextvars.ContextVar("only_shapes", default=False)


def only_shapes() -> bool:
    """Whether a module is being built for its shapes alone, so that no value need be drawn."""
    return _ONLY_SHAPES.get()


def structure_of(build: Callable[[], M]) -> Structure[M]:
    """The structure of `build()`, without allocating or tracing a single parameter."""
    found: list[Structure[M]] = []
    token = _ONLY_SHAPES.set(True)
    try:  # keys of random numbers, which the builder makes, touch no device
        jax.eval_shape(lambda: found.append(_structure(build())))
    finally:
        _ONLY_SHAPES.reset(token)
    return found[0]


def split(module: M) -> tuple[Structure[M], Params]:
    """What a module is, and what it holds."""
    _, state = nnx.split(module)
    params = {_name(path): v.get_value() for path, v in nnx.to_flat_state(state)}
    return _structure(module), params


def _structure(module: M) -> Structure[M]:
    graphdef, state = nnx.split(module)

    def abstract(v: nnx.Variable) -> nnx.Variable:
        value = v.get_value()
        return v.replace(jax.ShapeDtypeStruct(value.shape, value.dtype))

    variables = {_name(path): (path, abstract(v)) for path, v in nnx.to_flat_state(state)}
    return Structure(graphdef, variables)


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def stack(build: Callable[[jax.Array], M], n: int, key: jax.Array) -> M:
    """n modules of `build(key)`, each of a key of its own, as one with stacked parameters.

    It cannot be called: `unstack` it, or scan over its parameters (`split`) with
    `structure.unstacked()`.
    """
    structure = structure_of(lambda: build(jax.random.key(0)))
    if only_shapes():
        return structure.stacked(n).merge(structure.stacked(n).shapes)
    params = jax.vmap(lambda k: split(build(k))[1])(jax.random.split(key, n))
    return structure.stacked(n).merge(params)


def unstack(module: M) -> list[M]:
    """The modules that `stack` made one, their parameters sliced out of the stacked ones."""
    structure, params = split(module)
    one, n = structure.unstacked(), len(next(iter(params.values())))
    return [one.merge({name: x[i] for name, x in params.items()}) for i in range(n)]


def fold(module: M, count: int, apply: Callable[[M, Array], Array], x: Array) -> Array:
    """`apply` of the first modules that `stack` made one, one after the other, in a loop that is
    compiled once."""
    structure, params = split(module)
    one = structure.unstacked()

    def turn(i: Array, x: Array) -> Array:
        own = {name: jax.lax.dynamic_index_in_dim(v, i, 0, False) for name, v in params.items()}
        return apply(one.merge(own), x)

    return jax.lax.fori_loop(0, count, turn, x)


def prefixed(params: Mapping[str, V], prefix: str) -> dict[str, V]:
    """`{"q": …}` as part of a larger module: `{"lm.q": …}`."""
    return {f"{prefix}.{name}": value for name, value in params.items()}


def part(params: Mapping[str, V], prefix: str) -> dict[str, V]:
    """The parameters of one submodule, under the names that it gives them itself."""
    start = f"{prefix}."
    return {name[len(start) :]: v for name, v in params.items() if name.startswith(start)}
