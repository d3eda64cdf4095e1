"""Builds a feature cache (`data.features`) shard by shard: resumable, in one or several processes.

Everything is written into a hidden directory beside the final one, which is renamed when all shards
are there. A shard counts as done once its record (`SPLIT-00000.json`: rows, bytes, sha256, digests)
stands beside it, so a killed build loses at most one shard, and the same command continues. Of
several processes on one file system, process i of n writes the shards i, i+n, ...; the one that
finds the last shard in place finishes the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import math
import os
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
    file_digest,
    known_digests,
)
from har_jax.errors import UserError
from har_jax.files import read_json, write_bytes, write_json

SHARD_BYTES = 256 << 20
_PLAN, _FINISHING = "build.json", "lock-finish"

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

    @property
    def partial(self) -> pathlib.Path:
        """Where it grows."""
        return self.out.with_name(f".{self.out.name}.partial")

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
        size = self.nbytes
        for unit in ("bytes", "kB", "MB", "GB", "TB"):
            if size < 1000 or unit == "TB":
                break
            size /= 1000
        number = f"{size:,.0f}" if unit == "bytes" else f"{size:,.1f}"
        shards = f"{len(self.shards):,} shard" + "s" * (len(self.shards) != 1)
        return f"{n:,} images x {s} x {dv} {self.dtype} = {number} {unit}, {shards}"

    @functools.cached_property
    def plan(self) -> dict[str, Any]:
        """What a continued build must share with the one that began."""
        return {
            **_described(self),
            "images": {name: _images_digest(split) for name, split in self.splits.items()},
            "shards": len(self.shards),
        }

    def missing(self) -> list[Shard]:
        """Shards that nobody has finished yet."""
        return [shard for shard in self.shards if not self.done(shard)]

    def done(self, shard: Shard) -> bool:
        """Whether a shard and its record stand there whole."""
        record, file = self.partial / f"{shard.name}.json", self.partial / f"{shard.name}.npy"
        if not (record.exists() and file.exists()):
            return False
        return file.stat().st_size == read_json(record, "the record of a shard")["bytes"]


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


def begin(build: Build, *, overwrite: bool = False) -> None:
    """Makes (or finds) the partial directory, after checking that all of it will fit.

    Raises:
      UserError: an unfinished build of something else is there, or the disk is too small.
    """
    partial = build.partial
    if overwrite:
        if build.out.exists() and not (build.out / MANIFEST).is_file():
            raise UserError(f"{build.out} is no feature cache; --overwrite replaces those only")
        if (partial / _PLAN).exists() and read_json(partial / _PLAN, "a plan") != build.plan:
            shutil.rmtree(partial)
    with _disk_errors(build.out):
        partial.mkdir(parents=True, exist_ok=True)
        if (partial / _PLAN).exists():
            plan = read_json(partial / _PLAN, "the plan of an unfinished feature cache")
            if plan != build.plan:
                keys = [key for key in build.plan if plan.get(key) != build.plan[key]]
                raise UserError(
                    f"{partial} is an unfinished feature cache with another {' and '.join(keys)}; "
                    "remove it, pass --overwrite, or choose another --out"
                )
        else:
            write_json(partial / _PLAN, build.plan)
    todo = sum(shard.stop - shard.first for shard in build.missing()) * build.row_bytes
    free = shutil.disk_usage(partial).free
    if todo > free:
        raise UserError(
            f"the feature cache needs {todo / 1e9:,.1f} GB and {partial.parent} has "
            f"{free / 1e9:,.1f} GB free; choose another --out, --dtype=bfloat16, or --pooled"
        )


def write(
    build: Build,
    rows: Rows,
    *,
    part: tuple[int, int] = (0, 1),
    wrote: Callable[[int], None] = lambda images: None,
) -> bool:
    """Writes this part's missing shards, then finishes if no other part has to; True if complete.

    Args:
      rows: computes features.
      part: (i, n): shards i, i+n, ... of all.
      wrote: told the number of images after every batch.

    Raises:
      UserError: another process writes this part, the disk is full, or features are not finite.
    """
    index, count = part
    partial = build.partial
    with _disk_errors(build.out), _lock(partial / f"lock-{index}-of-{count}"):
        for shard in build.shards[index::count]:
            if not build.done(shard):
                _write_shard(build, shard, rows, wrote)
    # From here another part may finish, and rename the directory, at any moment.
    if build.missing():
        return not partial.exists()
    with contextlib.suppress(FileNotFoundError), _lock(partial / _FINISHING, wait=True):
        if partial.exists():
            with _disk_errors(build.out):
                _finish(build)
    return True


def _write_shard(build: Build, shard: Shard, rows: Rows, wrote: Callable[[int], None]) -> None:
    dtype = DTYPES[build.dtype]
    n = shard.stop - shard.first
    values = np.empty((n, *build.shape), dtype)
    digests = np.empty(n, np.uint64)
    done = 0
    split = build.splits[shard.split]
    for features, some in rows(split, shard.first, shard.stop):
        here = slice(done, done + len(some))
        with np.errstate(over="ignore"):  # told below, with the image
            values[here] = features.astype(dtype)
        finite = np.isfinite(values[here].astype(np.float32)).all(axis=(1, 2))
        if not finite.all():
            image_id = split.image_ids[shard.first + done + int(np.argmin(finite))]
            hint = "; --dtype=bfloat16 has float32's range" if build.dtype == "float16" else ""
            raise UserError(
                f"features of image {image_id} of {shard.split!r} are not finite as "
                f"{build.dtype}{hint}"
            )
        digests[here] = some
        done += len(some)
        wrote(len(some))
    assert done == n, f"{done} rows for a shard of {n}"
    buffer = io.BytesIO()
    np.save(buffer, values.view(np.uint16) if build.dtype == "bfloat16" else values)
    file = build.partial / f"{shard.name}.npy"
    write_bytes(file, buffer.getvalue())
    record = {
        "file": file.name,
        "rows": n,
        "bytes": file.stat().st_size,
        "sha256": file_digest(file),
    }
    write_json(build.partial / f"{shard.name}.json", {**record, "digests": digests.tolist()}, None)


def _finish(build: Build) -> None:
    """Index and manifest from the shards' records; then the final name."""
    partial = build.partial
    if not (partial / MANIFEST).exists():
        splits: dict[str, Any] = {}
        for name, split in build.splits.items():
            records = [
                read_json(partial / f"{shard.name}.json", "the record of a shard")
                for shard in build.shards
                if shard.split == name
            ]
            index = np.empty(len(split), INDEX_DTYPE)
            index["image_id"] = split.image_ids
            index["digest"] = np.concatenate([np.array(r.pop("digests"), "<u8") for r in records])
            buffer = io.BytesIO()
            np.save(buffer, index)
            file = partial / f"{name}.index.npy"
            write_bytes(file, buffer.getvalue())
            splits[name] = {
                "images": len(split),
                "index": {
                    "file": file.name,
                    "bytes": file.stat().st_size,
                    "sha256": file_digest(file),
                },
                "shards": records,
            }
        write_json(partial / MANIFEST, {**_described(build), "splits": splits})
    for shard in build.shards:
        (partial / f"{shard.name}.json").unlink(missing_ok=True)
    for file in (partial / _PLAN, *partial.glob("lock-*-of-*"), *partial.glob(".*.partial")):
        file.unlink(missing_ok=True)
    old = build.out.with_name(f".{build.out.name}.old")
    if build.out.exists():
        os.rename(build.out, old)
    os.rename(partial, build.out)
    (build.out / _FINISHING).unlink()
    shutil.rmtree(old, ignore_errors=True)


def _described(build: Build) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "origin": dataclasses.asdict(build.origin),
        "shape": list(build.shape),
        "dtype": build.dtype,
        "dataset": build.dataset,
    }


def _images_digest(split: Split) -> str:
    """Of image ids and of what is known of their bytes: tells one dataset from another."""
    digest = hashlib.sha256(np.asarray(split.image_ids, np.int64).tobytes())
    digest.update(np.array(list(known_digests(split).values()), np.uint64).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(path: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Held by one process at a time; the system lets it go if that dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"another process is writing the feature cache {path.parent}; wait for it, or "
                "share the work with --part=I/N"
            ) from None
        yield


@contextlib.contextmanager
def _disk_errors(out: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        raise UserError(
            f"cannot write the feature cache {out}: {error.strerror}; what is finished is kept, "
            "and the same command continues"
        ) from error
