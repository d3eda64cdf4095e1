"""A table of a model's parameters, for the first lines of a run's log."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from jax.sharding import NamedSharding


def parameter_overview(
    shapes: Mapping[str, Any], trained: Collection[str], shardings: Mapping[str, NamedSharding]
) -> str:
    """One line for all layers' parameters of a name: shape, numbers, type, bytes, sharding.

    Args:
      shapes: anything with `shape` and `dtype`, by name.
      trained: the names of those that learn.
      shardings: where each lives; the last column is what the fullest device holds of it.
    """
    groups: dict[tuple, list[str]] = collections.defaultdict(list)
    for name, x in shapes.items():
        alike = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        spec = " ".join(map(str, shardings[name].spec)) if any(shardings[name].spec) else "whole"
        learns = "trained" if name in trained else "frozen"
        groups[alike, tuple(x.shape), str(x.dtype), learns, spec].append(name)

    def held(names: Collection[str], split: bool) -> int:
        return sum(
            math.prod(shardings[n].shard_shape(shapes[n].shape) if split else shapes[n].shape)
            * shapes[n].dtype.itemsize
            for n in names
        )

    def sizes(names: Collection[str]) -> list[str]:
        count = sum(math.prod(shapes[n].shape) for n in names)
        return [f"{count:,}", _bytes(held(names, False)), _bytes(held(names, True))]

    rows = [["parameter", "", "shape", "dtype", "", "split over", "numbers", "size", "a device"]]
    for (alike, shape, dtype, learns, spec), names in groups.items():
        times = f"{len(names)} x" if len(names) > 1 else ""
        text = " x ".join(map(str, shape)) or "scalar"
        rows.append([alike, times, text, dtype, learns, spec, *sizes(names)])
    for learns, names in (
        ("trained", [n for n in shapes if n in trained]),
        ("frozen", [n for n in shapes if n not in trained]),
    ):
        rows.append(["all", f"{len(names)} x", "", "", learns, "", *sizes(names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        "  ".join(
            cell.rjust(width) if i in (1, 6, 7, 8) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(aligned)


def _bytes(count: float) -> str:
    """`13.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
