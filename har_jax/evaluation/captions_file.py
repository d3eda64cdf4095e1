"""Captions of any number of images into one file; a killed command goes on where it was.

    OUT                    a row for each image, in one of `FORMATS`; it appears by one rename
    OUT.skipped.jsonl      the images that do not decode, and why, where there are some
    .OUT.partial/shards/lines.jsonl    the rows so far, in an order that says what is done

Images are captioned in fixed stretches of their list, each drawn for by a seed of its own, so that
what a continued command writes is what an unbroken one writes. Of several processes
(jax.distributed) each decodes its devices' rows of a stretch, and the first one writes. Beside a
few batches of pixels nothing is kept in memory but the images' names.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import msgspec
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float32

from har_jax.data.image_list import ImageList
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import ahead
from har_jax.data.staged import Staged, check_free
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError, one_line
from har_jax.foreign import is_unicode, parse_json, typed
from har_jax.ids import Id
from har_jax.loading.loaded import LoadedCaptioner, batch_seed
from har_jax.progress import progress
from har_jax.sharding import batch_sharding

FORMATS = (".jsonl", ".json", ".csv")
FIELDS = ("image_id", "image", "caption")
"""Of a row of any format; `image_id` and `caption` make it COCO results."""

_TOLD = 10  # images that do not decode are named up to here
_WHAT = "captions file"
_FIX = "remove it, or choose another --out"


class _Line(msgspec.Struct):
    image: str
    image_id: Id | None = None
    caption: str | None = None
    skipped: str | None = None


@dataclasses.dataclass(frozen=True)
class Made:
    """How many images have a caption, and how many do not decode."""

    captions: int
    skipped: int


def tell(made: Made, out: str | os.PathLike[str]) -> None:
    """Prints what became of the images.

    Raises:
      UserError: none of them decodes, of which a script has to hear.
    """
    print(f"{made.captions} captions written to {out}")
    told = f"{made.skipped} images were skipped: {skipped_path(out)} says why"
    if made.skipped and not made.captions:
        raise UserError(told)
    if made.skipped:
        print(told)


def check_out(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """
    Raises:
      UserError: no format has this suffix, or something is there that must not be replaced.
    """
    if pathlib.Path(out).suffix.lower() not in FORMATS:
        raise UserError(f"--out={out}: give a file that ends in {', '.join(FORMATS)}")
    if os.path.isdir(out):
        raise UserError(f"--out={out} is a directory; give a file in it")
    check_free(out, _WHAT, "", overwrite=overwrite)


def skipped_path(out: str | os.PathLike[str]) -> pathlib.Path:
    """Where the images are listed that do not decode."""
    return pathlib.Path(out).with_suffix(".skipped.jsonl")


def caption_into(
    captioner: LoadedCaptioner,
    images: ImageList,
    out: str | os.PathLike[str],
    how: DecodeSettings,
    *,
    source: Mapping[str, Any],
    seed: int = 0,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Made:
    """Captions images into a file, or the rest of them where a kill left it unfinished. With
    several processes, all call this.

    Args:
      source: what the captioner was loaded from, JSON-able: a file that was begun with another one
        is not continued.
      seed: of sampling.
      batch_size: images at a time, rounded up to what the mesh divides.
      overwrite: replace what is at `out`, or was begun with other settings.

    Raises:
      UserError: see `check_out`; another process writes there; it was begun with other settings or
        images; or the captioner reads no images.
    """
    check_out(out, overwrite=overwrite)
    if captioner.preprocessor is None:
        raise UserError("this captioner was trained on imported features and cannot encode images")
    size = captioner.batch_size_for(len(images), batch_size)
    key = {**source, "step": captioner.step, "run": captioner.run.get("created")}
    key |= {"max_tokens": how.max_tokens or captioner.config.data.max_tokens}
    key |= {"prompt": captioner.config.model.prompt, **dataclasses.asdict(how)}
    if how.method == "sample":
        key |= {"seed": seed, "batch_size": size}
    primary = jax.process_index() == 0
    place = Staged(out, _WHAT, "")
    with contextlib.ExitStack() as held:

        def begin() -> Bool[np.ndarray, " N"]:
            held.enter_context(place.locked())
            place.begin(key, anew=overwrite)
            return lines.open(images)

        lines = _Lines(place.growing("lines.jsonl"))
        done = _agreed(images, begin)
        with progress(len(images), desc="captions", unit="images", initial=int(done.sum())) as bar:
            for rows in _captioned(captioner, images, done, size, how, seed):
                if primary:
                    lines.add(rows, bar.write)
                bar.update(len(rows))
        if not primary:
            return Made(0, 0)
        lines.file.close()
        place.finish(lambda: _arrange(place, lines), overwrite=overwrite)
    return Made(lines.captions, lines.skipped)


class _Lines:
    """The rows so far, in a file that grows by whole batches.

    Attributes:
      captions, skipped: how many of its rows have a caption, or say why there is none.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.captions, self.skipped = path, 0, 0
        self.file: IO[bytes]

    def open(self, images: ImageList) -> Bool[np.ndarray, " N"]:
        """Which images are done; a line that a kill cut off is removed.

        Raises:
          UserError: the file has rows of other images, or is damaged.
        """
        self.file = self.path.open("a+b")
        place = {_shown(name): i for i, name in enumerate(images.names)}
        done, size = np.zeros(len(images), bool), 0
        for line in _whole_lines(self.file):
            row = typed(_parsed(line, self.path), _Line, f"{self.path}", _FIX)
            i = place.get(row.image)
            if i is None:
                raise UserError(
                    f"{self.path} was begun with other images ({row.image!a:.80} is not among "
                    f"these); give those too, {_FIX}, or pass --overwrite"
                )
            if not done[i]:
                done[i] = True
                self._count(row.skipped)
            size += len(line)
        self.file.truncate(size)
        return done

    def add(self, rows: list[dict[str, Any]], tell: Any) -> None:
        """Appends rows, all in one write, and tells the first images that were skipped."""
        self.file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self.file.flush()
        for row in rows:
            self._count(why := row.get("skipped"))
            if why and self.skipped <= _TOLD:
                more = "; further ones are listed beside the captions" * (self.skipped == _TOLD)
                tell(f"skipped: {why}{more}")

    def rows(self) -> Iterator[_Line]:
        """All of them, as they are read."""
        with self.path.open("rb") as file:
            for line in _whole_lines(file):
                yield typed(_parsed(line, self.path), _Line, f"{self.path}", _FIX)

    def _count(self, skipped: str | None) -> None:
        self.skipped += skipped is not None
        self.captions += skipped is None


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; not a last one without it."""
    file.seek(0)
    yield from (line for line in file if line.endswith(b"\n"))


def _parsed(line: bytes, path: pathlib.Path) -> Any:
    return parse_json(line, f"{path}", f"another file: {_FIX}")


def _agreed(images: ImageList, begin: Any) -> Bool[np.ndarray, " N"]:
    """What `begin` of the first process says is done, in all processes.

    Raises:
      UserError: the first process could not begin, or the processes see different images.
    """
    if jax.process_count() == 1:
        return begin()
    listed = hashlib.sha256("\n".join(images.names).encode(errors="surrogatepass")).digest()
    all_listed = multihost_utils.process_allgather(np.frombuffer(listed, np.uint8))
    if (all_listed != all_listed[0]).any():
        raise UserError(
            "the processes see different images; give all of them the same, on a file system that "
            "they share"
        )
    failed: UserError | None = None
    done = np.zeros(len(images), bool)
    if jax.process_index() == 0:
        try:
            done = begin()
        except UserError as error:
            failed = error
    state = np.concatenate([[failed is not None], done]).astype(np.uint8)
    state = np.asarray(multihost_utils.broadcast_one_to_all(state))
    if state[0]:
        raise failed or UserError("the first process could not begin; its own line says why")
    return state[1:].astype(bool)


def _captioned(
    captioner: LoadedCaptioner,
    images: ImageList,
    done: Bool[np.ndarray, " N"],
    size: int,
    how: DecodeSettings,
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """The rows that are not done, stretch by stretch; some are decoded ahead, in threads."""
    assert captioner.preprocessor is not None
    shards: Any = batch_sharding(captioner.mesh).addressable_devices_indices_map((size,))
    own = sorted({row for (part,) in shards.values() for row in range(size)[part]})
    stretches = [n for n in range(-(-len(images) // size)) if not done[n * size :][:size].all()]
    looker = _Looker(images, captioner.preprocessor, size, own)
    for n, (pixels, why) in zip(
        stretches, ahead(len(stretches), lambda k: looker.look(stretches[k]), 1), strict=True
    ):
        tokens, lengths = captioner.run_batch(pixels, how, batch_seed(seed, n))
        texts = captioner.decode_texts(tokens, lengths)
        bad = _anywhere(why, size)
        rows: list[dict[str, Any]] = []
        for row, i in enumerate(range(n * size, min(len(images), (n + 1) * size))):
            if done[i]:
                continue
            name = images.names[i]
            if row in bad:
                told = why.get(row) or f"image {images.path(i)} was not read by another process"
                rows.append({"image": _shown(name), "skipped": told})
            else:
                rows.append({"image_id": images.ids[i], "image": name, "caption": texts[row]})
        yield rows


@dataclasses.dataclass(frozen=True)
class _Looker:
    """Reads and decodes the rows of a stretch that are this process's own."""

    images: ImageList
    preprocessor: Preprocessor
    size: int
    own: list[int]

    def look(self, n: int) -> tuple[Float32[np.ndarray, "B H W 3"], dict[int, str]]:
        """Pixels of stretch n, black where an image is another process's or does not decode, and
        why it does not."""
        pixels = np.zeros((self.size, *self.preprocessor.output_size, 3), np.uint8)
        why: dict[int, str] = {}
        for row in self.own:
            i = n * self.size + row
            if i < len(self.images):
                try:
                    pixels[row] = self._pixels(i)
                except UserError as error:
                    why[row] = one_line(str(error))
        return self.preprocessor.normalise(pixels), why

    def _pixels(self, i: int) -> np.ndarray:
        name = self.images.name_of(i)
        if not is_unicode(name):
            raise UserError(f"image {name!a}: the name of the file is no text in UTF-8")
        return self.preprocessor.pixels(self.images.read(i), name=name)


def _shown(name: str) -> str:
    """The name of a file as a line can hold it; one that is no text has escapes instead."""
    return name if is_unicode(name) else ascii(name)


def _anywhere(why: Mapping[int, str], size: int) -> set[int]:
    """The rows that do not decode, in whichever process."""
    if jax.process_count() == 1:
        return set(why)
    bad = np.isin(np.arange(size), list(why)).astype(np.uint8)
    return set(np.flatnonzero(multihost_utils.process_allgather(bad).max(0)).tolist())


def _arrange(place: Staged, lines: _Lines) -> None:
    """Makes the final file, and that of what was skipped, of the rows."""
    with place.whole.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, place.out.suffix.lower(), (r for r in lines.rows() if r.skipped is None))
        file.flush()
        os.fsync(file.fileno())
    beside = skipped_path(place.out)
    if not lines.skipped:
        beside.unlink(missing_ok=True)  # of what is replaced
        return
    partial = place.path / "skipped"
    with partial.open("w", encoding="utf-8") as file:
        for row in lines.rows():
            if row.skipped is not None:
                file.write(json.dumps({"image": row.image, "why": row.skipped}) + "\n")
    os.replace(partial, beside)


def write_rows(file: io.TextIOBase | IO[str], suffix: str, rows: Iterator[_Line]) -> None:
    """Rows of `FIELDS` in one of `FORMATS`, one after the other."""
    found: Iterator[dict[str, Any]] = ({k: getattr(row, k) for k in FIELDS} for row in rows)
    if suffix == ".csv":
        table: csv.DictWriter[str] = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(found)
        return
    texts = (json.dumps(row, ensure_ascii=False) for row in found)
    if suffix == ".jsonl":
        file.writelines(f"{text}\n" for text in texts)
        return
    file.write("[\n")
    file.writelines(f"{',' if number else ''}{text}\n" for number, text in enumerate(texts))
    file.write("]\n")
