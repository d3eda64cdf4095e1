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

    def sizes(names: Collection[str]) -> list[str]:
        count = whole = held = 0
        for n, x in ((n, shapes[n]) for n in names):
            count += math.prod(x.shape)
            whole += math.prod(x.shape) * x.dtype.itemsize
            held += math.prod(shardings[n].shard_shape(x.shape)) * x.dtype.itemsize
        return [f"{count:,}", _bytes(whole), _bytes(held)]

    rows = [["parameter", "", "shape", "dtype", "", "split over", "numbers", "size", "a device"]]
    for (alike, shape, dtype, learns, spec), names in groups.items():
        times = f"{len(names)} x" if len(names) > 1 else ""
        text = " x ".join(map(str, shape)) or "scalar"
        rows.append([alike, times, text, dtype, learns, spec, *sizes(names)])
    for learns in ("trained", "frozen"):
        names = [n for n in shapes if (n in trained) == (learns == "trained")]
        rows.append(["all", f"{len(names)} x", "", "", learns, "", *sizes(names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    line = "  ".join(f"{{:{'>' if i in (1, 6, 7, 8) else '<'}{n}}}" for i, n in enumerate(widths))
    return "\n".join(line.format(*row).rstrip() for row in rows)


def _bytes(count: float) -> str:
    """`13.5 GiB`."""
    size = min(int(math.log2(count or 1)) // 10, 3)
    return f"{count / 1024**size:.{min(size, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[size]}"
