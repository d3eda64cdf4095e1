"""From entries of captions files, and folders of images, to a dataset on disk.

Images keep their bytes; each is decoded once to see that it can be. What cannot be used is dropped,
counted and reported by kind; `strict` makes that an error.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from har_jax.data import builder
from har_jax.data.builder import Shard, ShardWriter
from har_jax.data.dataset import Example, PathLike
from har_jax.data.entries import Entry, Problems, Reading, check_unique
from har_jax.data.image_files import ImageFiles
from har_jax.data.images import decode
from har_jax.data.overlap import ImageSet, content_key, read_image_set
from har_jax.errors import UserError
from har_jax.foreign import shortened
from har_jax.progress import write as say
from har_jax.text.tokenizer import load_tokenizer
from har_jax.text.words import PTB, find_words

DUPLICATES = ("refuse", "drop")
COPIES = "images with the bytes of one in a held-out split"


@dataclasses.dataclass(frozen=True)
class Options:
    """What every subcommand of `prepare` that reads photographs offers.

    Attributes:
      strict: raise instead of dropping anything.
      exclude: datasets, "DIR" or "DIR:SPLIT", whose images are left out, by id and by content.
      duplicates: of one image in two splits: "refuse", or "drop" the one that is held out less.
      tokenizer: HF directory, to report the lengths of captions in tokens; None for none.
      words: the name of what is counted of captions, see `text.words`.
      overwrite: replace the dataset that is there.
    """

    strict: bool = False
    exclude: tuple[str, ...] = ()
    duplicates: str = "refuse"
    tokenizer: str | None = None
    words: str = PTB.name
    overwrite: bool = False


def prepare(
    out: PathLike,
    read: Callable[[Problems], Reading],
    folders: Sequence[PathLike],
    *,
    name: str,
    description: str,
    settings: Mapping[str, Any],
    options: Options = Options(),
) -> tuple[dict[str, Any], list[str]]:
    """Reads captions files and image folders, and writes a dataset; continues a broken-off one.

    Args:
      read: reads the captions files, adding what it drops to the problems.
      folders: where images are looked for, in this order.

    Returns:
      (`dataset.json`, lines for a person on what was dropped and what is odd).

    Raises:
      UserError: bad captions files, a missing folder, an image in two splits, `strict` and
        something to drop, and see `builder.write_resumable`.
    """
    if options.duplicates not in DUPLICATES:
        raise UserError(f"duplicates is {options.duplicates!r}; allowed are refuse, drop")
    builder.check_free(out, overwrite=options.overwrite)
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"--images={folder}: there is no such directory")
    roots = [pathlib.Path(folder) for folder in folders]
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    words = find_words(options.words)
    problems = Problems()
    reading = read(problems)
    check_unique(reading.entries)
    excluded = [(spec, read_image_set(spec)) for spec in options.exclude]
    for spec, images in excluded:
        if not images.contents and not (reading.ids and reading.ids == images.ids_of):
            raise UserError(
                f"--exclude={spec} keeps no hashes of its images, and its ids mean other images "
                "than these; prepare it again with this version"
            )
    entries = list(_not_excluded(reading, excluded, problems))
    if options.strict:
        problems.refuse()
        if reading.notes:
            raise UserError("strict stops at " + shortened(" | ".join(reading.notes), 700))
    splits = sorted({entry.split for entry in entries}, key=_held_out_first)
    source = _Source(roots, excluded, options.duplicates)

    def before_publishing() -> None:
        if options.strict:
            problems.refuse("; mend them and give the same command again")

    card = builder.write_resumable(
        out,
        {split: [entry for entry in entries if entry.split == split] for split in splits},
        source.read,
        key=_key(entries, roots, excluded),
        name=name,
        ids=reading.ids,
        description=description,
        settings=settings,
        problems=problems,
        is_current=source.is_current,
        before_publishing=before_publishing,
        words=words,
        tokenizer=tokenizer,
        overwrite=options.overwrite,
    )
    for note in reading.notes:
        say(f"note: {note}")
    return card, problems.lines()


def _held_out_first(split: str) -> tuple[int, str]:
    """Test before validation before training: a copy is dropped where it comes later."""
    return {"test": 0, "val": 1, "restval": 3, "train": 4}.get(split, 2), split


def _not_excluded(
    reading: Reading, excluded: Sequence[tuple[str, ImageSet]], problems: Problems
) -> Iterator[Entry]:
    for entry in reading.entries:
        for spec, images in excluded:
            if images.ids_of and images.ids_of == reading.ids and entry.image_id in images.ids:
                problems.add(f"images that are in {spec}", entry, wanted=True)
                break
        else:
            yield entry


def _key(
    entries: Sequence[Entry],
    roots: Sequence[pathlib.Path],
    excluded: Sequence[tuple[str, ImageSet]],
) -> str:
    """Of all that decides what is in the records, except the images themselves."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(dataclasses.astuple(entry)).encode())
    rest = [os.fspath(root.absolute()) for root in roots]
    rest += [*(images.fingerprint for _, images in excluded), str(builder.EXAMPLES_PER_SHARD)]
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Read:
    """What became of one entry: its bytes, or why there are none."""

    data: bytes | None
    kind: str = ""
    told: str = ""
    state: tuple[str, int, int] | None = None  # path, size and time of a file that does not decode


class _Source:
    """Reads entries into shards, and remembers what it has seen."""

    def __init__(
        self,
        roots: Sequence[pathlib.Path],
        excluded: Sequence[tuple[str, ImageSet]],
        duplicates: str,
    ):
        self._files, self._excluded, self._drop = ImageFiles(roots), excluded, duplicates == "drop"
        self._home: dict[str, str] = {}  # sha256 of an image → the split that it is in
        self._threads = min(16, os.cpu_count() or 1)

    def read(self, split: str, entries: Sequence[Entry], shard: ShardWriter) -> Iterator[None]:
        """Adds the images of these entries to a shard."""
        problems = Problems()
        unread: list[tuple[list[str], Any]] = []
        waiting = iter(entries)
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            # In bunches, so that a slow disk behind us does not fill the memory with images.
            while bunch := list(itertools.islice(waiting, 8 * self._threads)):
                for entry, got in zip(bunch, pool.map(self._load, bunch), strict=True):
                    if got.data is None:
                        problems.add(got.kind, got.told)
                        unread.append((list(entry.names), got.state))
                    elif kind := self._unwanted(split, got.data):
                        problems.add(kind, entry, wanted=True)
                    else:
                        ids = tuple(i for i, _ in entry.captions if i is not None)
                        texts = [text for _, text in entry.captions]
                        example = Example(entry.image_id, entry.filename, got.data, texts, ids)
                        shard.add(example, domain=entry.domain, source_id=entry.source_id)
                    yield
        shard.shard.extra = {"dropped": problems.to_json(), "unread": unread}
        self._remember(shard.shard)

    def is_current(self, shard: Shard) -> bool:
        """Whether what could not be read still cannot, and copies are still wanted or unwanted."""
        for names, state in shard.extra["unread"]:
            path = self._files.find(names)
            now = None if path is None else _state(path)
            if (None if state is None else tuple(state)) != now:
                return False
        if self._drop:
            homes = {self._home.get(image["sha256"], shard.split) for image in shard.images}
            good = homes <= {shard.split}
        else:
            good = COPIES not in shard.extra["dropped"]
        if good:
            self._remember(shard)
        return good

    def _remember(self, shard: Shard) -> None:
        for image in shard.images:
            self._home.setdefault(image["sha256"], shard.split)

    def _unwanted(self, split: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        for spec, images in self._excluded:
            if content_key(digest) in images.contents:
                return f"images that are in {spec}"
        if self._drop and self._home.get(digest, split) != split:
            return COPIES
        return ""

    def _load(self, entry: Entry) -> _Read:
        path = self._files.find(entry.names)
        if path is None:
            name = entry.names[0]
            if self._files.are_outside(entry.names):
                return _Read(None, "image files outside of --images", name)
            return _Read(None, "image files that are missing", name + self._files.near(name))
        try:
            data = path.read_bytes()
            decode(data, name=str(path), upright=False)
        except (UserError, OSError) as error:
            return _Read(None, "images that do not decode", str(error), _state(path))
        return _Read(data)


def _state(path: pathlib.Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns
