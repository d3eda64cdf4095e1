"""Builds a feature cache (`data.features.cache`) shard by shard: resumable, in several processes.

Of several processes on one file system, process i of n writes the shards i, i+n, ...; the one that
finds the last shard in place finishes the cache (`data.staged`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt64

from har_jax.data.dataset import Split
from har_jax.data.features.cache import (
    DTYPES,
    FORMAT,
    INDEX_DTYPE,
    MANIFEST,
    FeatureCache,
    Origin,
    checksums,
    file_digest,
    known_digests,
)
from har_jax.data.staged import Staged
from har_jax.errors import UserError
from har_jax.files import write_json
from har_jax.progress import progress

SHARD_BYTES = 256 << 20

Rows = Callable[
    [Split, int, int], Iterator[tuple[Float[np.ndarray, "B S Dv"], UInt64[np.ndarray, " B"]]]
]
"""(split, first, stop) → features and digests of the examples first..stop-1, batch by batch."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows `first` to `stop` of a split, in a file of their own."""

    split: str
    first: int
    stop: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class Build:
    """A cache to be made.

    Attributes:
      out: the final directory.
      origin, shape, dtype: see `FeatureCache`.
      splits: what is encoded.
      dataset: its name, for people.
    """

    out: pathlib.Path
    origin: Origin
    shape: tuple[int, int]
    dtype: str
    splits: Mapping[str, Split]
    dataset: str
    shard_bytes: int = SHARD_BYTES

    @functools.cached_property
    def staged(self) -> Staged:
        """Where it is made."""
        return Staged(self.out, "feature cache", MANIFEST)

    @property
    def shards(self) -> list[Shard]:
        rows = max(1, self.shard_bytes // self.row_bytes)
        return [
            Shard(name, first, min(first + rows, len(split)), number)
            for name, split in self.splits.items()
            for number, first in enumerate(range(0, len(split), rows))
        ]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.splits.values())) * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Of an image."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def describe(self) -> str:
        """The size of it, in a line."""
        s, dv = self.shape
        n = sum(map(len, self.splits.values()))
        power = min(4, (len(str(self.nbytes)) - 1) // 3)  # of 1,000
        size, unit = self.nbytes / 1000**power, ("bytes", "kB", "MB", "GB", "TB")[power]
        number = f"{size:,.1f}" if power else f"{size:,.0f}"
        shards = f"{len(self.shards):,} shard" + "s" * (len(self.shards) != 1)
        return f"{n:,} images x {s} x {dv} {self.dtype} = {number} {unit}, {shards}"

    @functools.cached_property
    def key(self) -> dict[str, Any]:
        """What a continued build must share with the one that began."""
        return {
            **_described(self),
            "images": {name: _images_digest(split) for name, split in self.splits.items()},
            "shards": len(self.shards),
        }

    def missing(self) -> list[Shard]:
        """Shards that nobody has finished yet."""
        # Older versions kept no sums: what they left unfinished is written again.
        records = {shard: self.staged.record(shard.name) or {} for shard in self.shards}
        return [shard for shard, record in records.items() if "crc32" not in record]


def is_complete(build: Build) -> bool:
    """Whether this very cache is there already.

    Raises:
      UserError: something else is.
    """
    if not build.out.exists() or (build.out.is_dir() and not any(build.out.iterdir())):
        return False
    if not (build.out / MANIFEST).is_file():
        raise UserError(f"{build.out} exists and is no feature cache; choose another --out")
    there = FeatureCache(build.out)
    differences = there.origin.differences(build.origin)
    if there.dtype.name != build.dtype:
        differences.append(f"dtype {there.dtype.name} there, {build.dtype} asked for")
    then, now = there.origin.compute_dtype, build.origin.compute_dtype
    if then != now:
        differences.append(f"computed in {then} there, {now} asked for")
    sizes = {name: len(split) for name, split in build.splits.items()}
    if there.splits != sizes:
        differences.append(f"splits {there.splits} there, {sizes} asked for")
    if differences:
        raise UserError(
            f"{build.out} holds another feature cache: {'; '.join(differences)}; choose another "
            "--out, or pass --overwrite to replace it"
        )
    for split in build.splits.values():
        there.of(split)
    return True


def write(
    build: Build, rows: Rows, *, part: tuple[int, int] = (0, 1), overwrite: bool = False
) -> bool:
    """Writes this part's missing shards, then finishes if no other part has to; True if complete.

    Args:
      rows: computes features.
      part: (i, n): shards i, i+n, ... of all.
      overwrite: replace the cache that is there, and what was begun of another.

    Raises:
      UserError: another process writes this part, an unfinished build of something else is there,
        the disk is too small or full, or features are not finite.
    """
    index, count = part
    staged = build.staged
    staged.check_free(overwrite=overwrite)
    with staged.locked(part):
        staged.begin(build.key, anew=overwrite)
        missing = build.missing()
        todo = sum(shard.stop - shard.first for shard in missing) * build.row_bytes
        free = shutil.disk_usage(staged.path).free
        if todo > free:
            raise UserError(
                f"the feature cache needs {todo / 1e9:,.1f} GB and {staged.path.parent} has "
                f"{free / 1e9:,.1f} GB free; choose another --out, --dtype=bfloat16, or --pooled"
            )
        mine = [shard for shard in build.shards[index::count] if shard in missing]
        if mine:
            total = sum(shard.stop - shard.first for shard in mine)
            with progress(total, desc="features", unit="images") as bar:
                for shard in mine:
                    _write_shard(build, shard, rows, bar.update)
        # From here another part may finish, and rename the directory, at any moment.
        if build.missing():
            return not staged.path.exists()
        staged.finish(lambda: _arrange(build), overwrite=overwrite)
    return True


def _write_shard(build: Build, shard: Shard, rows: Rows, wrote: Callable[[int], object]) -> None:
    dtype = DTYPES[build.dtype]
    n = shard.stop - shard.first
    values = np.empty((n, *build.shape), dtype)
    digests = np.empty(n, np.uint64)
    done = 0
    split = build.splits[shard.split]
    for features, some in rows(split, shard.first, shard.stop):
        here = slice(done, done + len(some))
        with np.errstate(over="ignore", invalid="ignore"):  # told below, with the image
            values[here] = features.astype(dtype)
        finite = np.isfinite(values[here].astype(np.float32)).all(axis=(1, 2))
        if not finite.all():
            image_id = split.ids[shard.first + done + int(np.argmin(finite))]
            hint = "; --dtype=bfloat16 has float32's range" if build.dtype == "float16" else ""
            raise UserError(
                f"features of image {image_id} of {shard.split!r} are not finite as "
                f"{build.dtype}{hint}"
            )
        digests[here] = some
        done += len(some)
        wrote(len(some))
    assert done == n, f"{done} rows for a shard of {n}"
    with build.staged.writing(shard.name) as (path, record):
        with path.open("wb") as file:
            np.save(file, values.view(np.uint16) if build.dtype == "bfloat16" else values)
        record |= _file(path, f"{shard.name}.npy", rows=n)
        record |= {"digests": digests.tolist(), "crc32": checksums(values).tolist()}


def _arrange(build: Build) -> None:
    """Index and manifest from the shards' records, and the shards under their final names."""
    staged = build.staged
    staged.whole.mkdir(exist_ok=True)
    splits: dict[str, Any] = {}
    for name, split in build.splits.items():
        records = [staged.record(shard.name) or {} for shard in build.shards if shard.split == name]
        index = np.empty(len(split), INDEX_DTYPE)
        index["image_id"] = split.ids
        for field, of in (("digest", "digests"), ("crc32", "crc32")):
            kind = INDEX_DTYPE[field]
            index[field] = np.concatenate([np.array(r.pop(of), kind) for r in records])
        file = staged.whole / f"{name}.index.npy"
        np.save(file, index)
        splits[name] = {"images": len(split), "index": _file(file, file.name), "shards": records}
    write_json(staged.whole / MANIFEST, {**_described(build), "splits": splits})
    for shard in build.shards:
        staged.move(shard.name, f"{shard.name}.npy")


def _file(path: pathlib.Path, name: str, **more: int) -> dict[str, Any]:
    return {"file": name, **more, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _described(build: Build) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "origin": build.origin.to_json(),
        "shape": list(build.shape),
        "dtype": build.dtype,
        "dataset": build.dataset,
    }


def _images_digest(split: Split) -> str:
    """Of image ids and of what is known of their bytes: tells one dataset from another."""
    digest = hashlib.sha256(np.asarray(split.ids, np.int64).tobytes())
    digest.update(np.array(list(known_digests(split).values()), np.uint64).tobytes())
    return digest.hexdigest()
