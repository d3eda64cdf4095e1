"""A frozen encoder's features on disk, read by image id from memory-mapped shards.

    DIR/feature_cache.json   what they are features of, and the size and sha256 of every file
    DIR/SPLIT.index.npy      [N] of (image id, digest of the image's bytes, crc32 of its features),
                             row by row
    DIR/SPLIT-00000.npy ...  [rows,S,Dv]; bfloat16, which NumPy has not, as its bits (uint16)

`data.features.build` writes it. A cache is refused by name where it is stale: other weights, other
preprocessing, another layer, other images, or damage: manifest and index are checked when they are
read, sizes when a cache is opened, and features by their crc32 whenever they are taken (0.2 ms for
257 x 1,024 in half precision). Older caches have no crc32.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import ml_dtypes
import msgspec
import numpy as np
from jaxtyping import Float, Int64, Shaped

from har_jax.arrays import read_npy
from har_jax.config import VisionTokens
from har_jax.data.dataset import Split
from har_jax.data.description import Word, sha256
from har_jax.data.protocols import Images
from har_jax.errors import UserError
from har_jax.foreign import Size, read_json, typed

log = logging.getLogger(__name__)

MANIFEST = "feature_cache.json"
FORMAT = 1
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
INDEX_DTYPE = np.dtype([("image_id", "<i8"), ("digest", "<u8"), ("crc32", "<u4")])
_OLD_INDEX_DTYPE = np.dtype(INDEX_DTYPE.descr[:2])
_SAMPLED = 8  # images of a split whose bytes are compared with those that were encoded

FeatureKind = Literal["patch", "pooled"]
_Side = Annotated[int, msgspec.Meta(ge=1, le=2**24)]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What features are features of. Two caches of one origin are interchangeable.

    Attributes:
      encoder: the HF directory, or `imported:NAME`.
      fingerprint: of the encoder's weights, or of the imported array.
      kind: patch tokens, or one pooled vector per image (S = 1).
      layer: whose patch tokens; None for pooled and for imported features.
      tokens: which of the layer's, as `config.CaptionerSettings.vision_tokens` says.
      preprocessing: `Preprocessor.identity`; empty for imported features.
      compute_dtype: what the encoder computed in. Features of another differ by rounding, which is
        told where they are used, and is no reason to refuse them.
    """

    encoder: str
    fingerprint: str
    kind: FeatureKind
    layer: int | None
    preprocessing: Mapping[str, Any]
    compute_dtype: str = "float32"
    tokens: VisionTokens = "patches"

    @property
    def imported(self) -> bool:
        return self.encoder.startswith("imported:")

    def differences(self, now: Origin) -> list[str]:
        """What stands against using features of this origin for `now`; [] for nothing.

        The encoder's path may have changed; its weights may not.
        """
        found = []
        if self.fingerprint != now.fingerprint:
            found.append(
                f"other weights ({short(self.fingerprint)} of {self.encoder} then, "
                f"{short(now.fingerprint)} of {now.encoder} now)"
            )
        if self._what() != now._what():
            found.append(f"{self._what()} then, {now._what()} now")
        for key in sorted(self.preprocessing.keys() | now.preprocessing.keys()):
            here, there = self.preprocessing.get(key), now.preprocessing.get(key)
            if here != there:
                found.append(f"preprocessing {key} {here} then, {there} now")
        return found

    def to_json(self) -> dict[str, Any]:
        """The fields; without those that older caches lack, where they are as they were then."""
        fields = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if fields[field.name] == field.default:
                del fields[field.name]
        return fields

    def _what(self) -> str:
        layer = "" if self.layer is None else f" of layer {self.layer}"
        which = {"patches": "patch tokens", "all": "all tokens"}
        tokens = which.get(self.tokens, "all tokens but the first")
        return {"patch": tokens, "pooled": "pooled features"}[self.kind] + layer


class _File(msgspec.Struct):
    file: Word
    bytes: Size
    sha256: str


class _Shard(_File):
    rows: Size


class _Part(msgspec.Struct):
    """Of a split."""

    images: Size
    index: _File
    shards: list[_Shard]


class _Manifest(msgspec.Struct):
    origin: Origin
    shape: tuple[_Side, _Side]
    dtype: Literal["float32", "bfloat16", "float16"]
    splits: dict[str, _Part]


class FeatureCache:
    """The features of a dataset's images; opening it reads no features. Thread-safe.

    Attributes:
      directory: where it lies.
      origin: what it holds features of.
      shape: (S, Dv) of an image.
      dtype: as stored.
      splits: {name: number of images}.
      fingerprint: sha256 of what decides the numbers, whichever images there are; runs record it.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        """
        Raises:
          UserError: no finished cache is there, or a file is missing or has another size.
        """
        self.directory = pathlib.Path(directory)
        path = self.directory / MANIFEST
        if not os.path.isfile(path):  # which never raises
            there = "holds no feature cache" if os.path.exists(self.directory) else "does not exist"
            raise UserError(
                f"{self.directory} {there} (no {MANIFEST}); make one with `python -m "
                f"har_jax.prepare features --data=DIR --encoder=HF_DIR --out={self.directory}`"
            )
        manifest = read_json(path, "the manifest of a feature cache")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{path} is not of format {FORMAT}; make the feature cache anew")
        self._read(manifest, typed(manifest, _Manifest, str(path), "make the feature cache anew"))
        for name, entry in self.files.items():
            file = self.directory / name
            size = file.stat().st_size if os.path.isfile(file) else None
            if size != entry.bytes:
                is_now = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(
                    f"{file} {is_now}, but was written with {entry.bytes:,}: the feature cache "
                    "is incomplete; copy the file again, or make the cache anew"
                )

    def _read(self, manifest: Mapping[str, Any], found: _Manifest) -> None:
        self.origin, self.shape, self.dtype = found.origin, found.shape, DTYPES[found.dtype]
        self.splits: dict[str, int] = {name: part.images for name, part in found.splits.items()}
        self._parts = found.splits
        shards = [shard for part in found.splits.values() for shard in part.shards]
        self._shards: list[str] = [shard.file for shard in shards]
        self.files: dict[str, _File] = {
            part.index.file: part.index for part in self._parts.values()
        }
        self.files |= {shard.file: shard for shard in shards}
        for name, part in self._parts.items():
            rows = sum(shard.rows for shard in part.shards)
            size = math.prod(self.shape) * self.dtype.itemsize
            short = next((s for s in part.shards if s.bytes < s.rows * size), None)
            if short is not None:
                raise UserError(
                    f"{self.directory / MANIFEST}: {short.file} has {short.bytes:,} bytes, too few "
                    f"for {short.rows:,} rows of {self.shape}; make the feature cache anew"
                )
            if rows != part.images:
                raise UserError(
                    f"{self.directory / MANIFEST}: split {name!r} has {part.images} images and "
                    f"{rows} rows; make the feature cache anew"
                )
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        identity = {key: manifest[key] for key in ("format", "origin", "shape", "dtype")}
        identity["origin"] = {**manifest["origin"], "encoder": ""}  # a path may change
        text = json.dumps(identity, sort_keys=True)
        self.fingerprint = "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> str:
        """What it holds, in a line."""
        s, dv = self.shape
        return f"{self.directory}, {s} x {dv} {self.dtype.name} of {self.origin.encoder}"

    def check_origin(self, now: Origin) -> None:
        """
        Raises:
          UserError: the features are not those of `now`; says what differs.
        """
        if self.origin.imported and not now.imported:
            raise UserError(
                f"feature cache {self.directory} holds imported features "
                f"({self.origin.encoder!r}), not those of {now.encoder}; set "
                "--config.model.encoder= (empty) to train on them"
            )
        differences = self.origin.differences(now)
        if differences:
            raise UserError(
                f"feature cache {self.directory} is stale: {'; '.join(differences)}. Make it anew "
                f"(`python -m har_jax.prepare features ... --out={self.directory} --overwrite`), "
                "or train without --config.data.features"
            )
        if self.origin.compute_dtype != now.compute_dtype and not now.imported:
            log.warning(
                f"the features of {self.directory} were computed in {self.origin.compute_dtype} "
                f"and this run computes in {now.compute_dtype}: they differ by rounding from what "
                "the run's own encoder would give (prepare features "
                f"--compute-dtype={now.compute_dtype} makes the same)"
            )

    def of(self, images: Images) -> ImageFeatures:
        """The features of these images, such as a split or a part of one, by image id.

        Raises:
          UserError: images without features, or that are not those that were encoded.
        """
        wanted = np.asarray(images.ids, np.int64)
        order, ids = self._sorted_ids
        places = np.minimum(np.searchsorted(ids, wanted), max(0, len(ids) - 1))
        known = ids[places] == wanted if len(ids) else np.zeros(len(wanted), bool)
        if not known.all():
            lacking = wanted[~known]
            held = ", ".join(f"{name} ({n:,} images)" for name, n in self.splits.items())
            raise UserError(
                f"feature cache {self.directory} lacks {len(lacking):,} of the {len(wanted):,} "
                f"images of {images} (such as id {lacking[0]}); it holds {held}; make "
                "it with --split=NAME of these as well"
            )
        rows = order[places]
        for i, digest in known_digests(images).items():
            if digest != self._index["digest"][rows[i]]:
                raise UserError(
                    f"feature cache {self.directory} was made of another image {wanted[i]} than "
                    f"{images} holds; make it anew for these images"
                )
        return ImageFeatures(self, rows)

    def covers(self, images: Images) -> bool:
        """Whether every image has features."""
        return bool(np.isin(np.asarray(images.ids, np.int64), self._index["image_id"]).all())

    def take(self, rows: Int64[np.ndarray, " B"]) -> Float[np.ndarray, "B S Dv"]:
        """Features of these rows; only their pages are read.

        Raises:
          UserError: they are not those that were written.
        """
        out = np.empty((len(rows), *self.shape), self.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(shards):
            here = shards == k
            out[here] = self._shard(int(k))[rows[here] - self._starts[k]]
        if "crc32" in (self._index.dtype.names or ()):
            wrong = checksums(out) != self._index["crc32"][rows]
            if wrong.any():
                row = rows[int(np.argmax(wrong))]
                file = self.directory / self._shards[int(shards[int(np.argmax(wrong))])]
                raise UserError(
                    f"{file}: the features of image {self._index['image_id'][row]} are not as they "
                    "were written; copy the file again, or make the cache anew"
                )
        return out

    def verify(self) -> list[str]:
        """Names of the files whose contents are not those that were written."""
        digests = {name: file_digest(self.directory / name) for name in self.files}
        return [name for name, entry in self.files.items() if digests[name] != entry.sha256]

    @property
    def nbytes(self) -> int:
        return sum(self.splits.values()) * math.prod(self.shape) * self.dtype.itemsize

    @functools.cached_property
    def _index(self) -> Shaped[np.ndarray, " N"]:
        """All splits' index, one after the other."""
        found = []
        for part in self._parts.values():
            file = self.directory / part.index.file
            if file_digest(file) != part.index.sha256:
                raise UserError(
                    f"{file} is not as it was written; copy it again, or make the cache anew"
                )
            rows = read_npy(file, "the index of a feature cache")
            if rows.dtype not in (INDEX_DTYPE, _OLD_INDEX_DTYPE) or rows.shape != (part.images,):
                raise UserError(
                    f"{file} is no index of {part.images} images; make the feature cache anew"
                )
            found.append(rows)
        kind = min((rows.dtype for rows in found), key=len, default=INDEX_DTYPE)
        return np.concatenate(
            [np.empty(0, kind), *(rows[list(kind.names or ())] for rows in found)]
        )

    @functools.cached_property
    def _sorted_ids(self) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """(rows in the order of the image ids, those ids)."""
        ids = self._index["image_id"]
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    @functools.cached_property
    def _shard(self) -> Any:
        @functools.cache
        def shard(k: int) -> np.ndarray:
            file = self.directory / self._shards[k]
            array = read_npy(file, "the features of a cache")
            if array.dtype == np.uint16 and array.ndim == 3:
                array = array.view(self.dtype) if self.dtype.itemsize == 2 else array
            rows = int(self._starts[k + 1] - self._starts[k])
            if array.shape != (rows, *self.shape) or array.dtype != self.dtype:
                raise UserError(
                    f"{file} holds {array.dtype}{list(array.shape)} where {MANIFEST} says "
                    f"{self.dtype}{[rows, *self.shape]}; make the cache anew"
                )
            return array

        return shard


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """Features of some images, in their order."""

    cache: FeatureCache
    rows: Int64[np.ndarray, " N"]

    def take(self, indices: Int64[np.ndarray, " B"]) -> Float[np.ndarray, "B S Dv"]:
        """Features of the images at these places."""
        return self.cache.take(self.rows[indices])


def known_digests(images: Images) -> dict[int, int]:
    """{position: digest of the image} of all images where a dataset lists what they hold, else of
    a few, spread over them, which are read."""
    contents = images.listing.contents if isinstance(images, Split) else None
    if contents is not None:
        return dict(enumerate(int.from_bytes(bytes.fromhex(x[:16]), "little") for x in contents))
    some = np.linspace(0, len(images) - 1, min(len(images), _SAMPLED)).astype(int)
    return {int(i): digest_of(images.read(int(i))) for i in np.unique(some)}


def digest_of(image: bytes) -> int:
    """64 bits of the sha256 of an image's encoded bytes."""
    return int.from_bytes(hashlib.sha256(image).digest()[:8], "little")


def checksums(features: Float[np.ndarray, "B S Dv"]) -> Shaped[np.ndarray, " B"]:
    """crc32 of the bytes of each image's features."""
    raw = np.ascontiguousarray(features).view(np.uint8).reshape(len(features), -1)
    return np.array([zlib.crc32(row.data) for row in raw], np.uint32)


def file_digest(path: pathlib.Path) -> str:
    """`sha256:...` of a file."""
    return f"sha256:{sha256(path)}"


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint, for people."""
    return fingerprint.removeprefix("sha256:")[:12]
