"""A family: from and to `config.json`, and its table of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh

from har_jax.interchange import hf_dir
from har_jax.interchange.table import Places, Row
from har_jax.interchange.weights import load, save
from har_jax.models.functional import Params, Structure, split, structure_of
from har_jax.sharding import RULES, LogicalAxes, Rules
from har_jax.types import DTypeLike

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Family(Generic[C]):
    """Attributes:

    model_types: of `config.json`; the first is the one that is written.
    read: the contents of a `config.json`, and what to call it in errors, to our configuration;
      `UserError` where it means a computation that ours is not.
    write: the way back, as transformers reads it.
    build: a module of a configuration, with random parameters; options change how it computes.
    table: the rows of the weights, as files are written.
    ignore: regex of tensors in files that are passed over, for a configuration.
    places: how else names begin in files, see `table.located`.
    """

    model_types: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], C]
    write: Callable[[C], dict[str, Any]]
    build: Callable[..., nnx.Module]  # (configuration, *, rngs, dtype, **options)
    table: list[Row]
    ignore: Callable[[C], str]
    places: Places = dataclasses.field(default_factory=dict)

    def read_config(self, directory: Path) -> C:
        """Of a directory; no weights are read."""
        found = hf_dir.read_config(directory, self.model_types)
        return self.read(found, str(directory / "config.json"))

    def structure(self, config: C, dtype: DTypeLike, **options: Any) -> Structure[Any]:
        """Of the network with parameters in `dtype`, without allocating any."""
        return structure_of(lambda: self.build(config, rngs=nnx.Rngs(0), dtype=dtype, **options))

    def load_params(
        self,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        logical_axes: Mapping[str, LogicalAxes],
        config: C,
        directory: Path,
        **placement: Any,
    ) -> Params:
        """The parameters of these names and shapes, straight into their shards (`weights.load`)."""
        how = {"ignore": self.ignore(config), "places": self.places, **placement}
        return load(shapes, logical_axes, directory, self.table, **how)

    def load(
        self,
        directory: str | Path,
        *,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
        dtype: DTypeLike | None = "float32",
        allow_nan: bool = False,
        config: C | None = None,
        **options: Any,
    ) -> Any:
        """The module of a directory (or hub name), its parameters in `dtype` (None: as stored);
        `config` where it is to be another than the directory's."""
        path = hf_dir.resolve(directory)
        config = self.read_config(path) if config is None else config
        structure = self.structure(config, dtype or "float32", **options)
        placement = dict(mesh=mesh, rules=rules, as_stored=dtype is None, allow_nan=allow_nan)
        shapes, axes = structure.shapes, structure.logical_axes
        return structure.merge(self.load_params(shapes, axes, config, path, **placement))

    def save(self, config: C, params: Mapping[str, Any], directory: Path) -> None:
        """Writes a directory that transformers loads; see `weights.save`."""
        save(params, directory, self.table, self.write(config))

    def save_module(self, module: Any, directory: str | Path) -> None:
        """`save` of a module that holds its configuration as `config`."""
        self.save(module.config, split(module)[1], Path(directory))


@dataclasses.dataclass(frozen=True)
class TwoTowers(Generic[C]):
    """A family that embeds images and texts in one space, so that it can score captions.

    Attributes:
      what: its name, for signatures and for people.
      whole: the family of both towers; its `read_config` tells C.
      towers: "vision" and "text": a family each, and its part of the configuration. Their modules
        have a method `embed`.
      width: of the space; `UserError` where the two towers have none in common.
      tokenizer: of a directory, checked to be that of the network: texts to int32 [N, L], with a
        `context_length` L and a `vocab_size`.
      vocab_size: how many ids its text tower knows.
      causal: whether a text may be read from its beginning on, piece by piece.
    """

    what: str
    whole: Family[C]
    towers: Mapping[str, tuple[Family, Callable[[C], Any]]]
    width: Callable[[C], int]
    tokenizer: Callable[[Path, C], Any]
    vocab_size: Callable[[C], int]
    causal: bool = False
