"""Writes a dataset (see `data.dataset` for what is in it): whole, or not at all.

`write` takes examples that fit into memory. `write_resumable` takes lists of items and a function
that reads them, and continues where a run of the same key was broken off (`data.staged`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from har_jax.data import staged
from har_jax.data.dataset import Example, PathLike, captions_path, document_frequency_path
from har_jax.data.description import CARD, FORMAT, sha256
from har_jax.data.entries import Problems
from har_jax.data.records import RecordFile, shard_name, write_description
from har_jax.data.staged import Staged
from har_jax.data.tally import token_figures, word_figures
from har_jax.errors import UserError
from har_jax.progress import progress
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.text.words import PTB, Words
from har_jax.version import __version__

T = TypeVar("T")

Counted = tuple[Words, CaptionTokenizer | None]
"""What the lengths of captions are counted in: words, and tokens if somebody asks."""

EXAMPLES_PER_SHARD = 1024  # what a kill costs at most; 150 MB of COCO's photographs


@dataclasses.dataclass
class Shard:
    """The index of a stretch of a split.

    Attributes:
      images: `id`, `file_name`, `sha256` of the encoded bytes, and where there is one `domain`, and
        `source_id`, what the image was called where it came from.
      annotations: `id`, `image_id`, `caption`, in the order of the images.
      num_bytes: of the records.
      extra: whatever its maker wants to find again (what was dropped).
    """

    split: str
    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    annotations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    num_bytes: int = 0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class ShardWriter:
    """A shard that is being written."""

    def __init__(self, shard: Shard, file: RecordFile):
        self.shard, self._file = shard, file

    def add(self, example: Example, **more: Any) -> None:
        """Adds an example, which has an id of each caption; `more` is what else is known of the
        image, such as its `domain`, where that is anything."""
        self._file.add(example)
        image = {
            "id": example.image_id,
            "file_name": example.filename,
            "sha256": hashlib.sha256(example.image).hexdigest(),
        }
        known = {key: value for key, value in more.items() if value not in (None, "")}
        self.shard.images.append(image | known)
        self.shard.annotations += [
            {"id": i, "image_id": example.image_id, "caption": caption}
            for i, caption in zip(example.caption_ids, example.captions, strict=True)
        ]
        self.shard.num_bytes = self._file.num_bytes


Reader = Callable[[str, Sequence[T], ShardWriter], Iterator[None]]
"""(split, items, shard): adds the items to the shard and yields after each; what it drops goes into
`shard.extra`."""


def write(
    directory: PathLike,
    examples: Iterable[tuple[str, Example]],
    *,
    name: str,
    splits: Sequence[str],
    description: str,
    settings: Mapping[str, Any],
    ids: str = "",
    words: Words = PTB,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset of examples that fit into memory; broken off, it leaves nothing.

    Args:
      examples: (split, example) in any order. Captions without ids are numbered.
      name: of the dataset: a lower-case word.
      splits: all the splits, also those that may stay empty (which are then left out).
      settings: how it was made, JSON-able; goes to `dataset.json`.
      ids: the id space, see `data.entries.Reading`.
      words: what is counted of captions, here and by whoever reads the dataset.
      overwrite: replace what is at `directory`.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: `directory` is taken, a name is malformed, ids repeat, an image is in two splits,
        the disk is full, or nothing was given.
    """

    def collected() -> dict[str, list[Example]]:
        items: dict[str, list[Example]] = {split: [] for split in splits}
        seen: set[int] = set()
        next_id = 1
        for split, example in examples:
            if (i := example.image_id) in seen:
                raise UserError(f"image id {i} occurs twice; image ids must be unique")
            seen.add(example.image_id)
            if len(example.caption_ids) != len(example.captions):
                own = range(next_id, next_id + len(example.captions))
                example, next_id = dataclasses.replace(example, caption_ids=tuple(own)), own.stop
            items[split].append(example)
        return items

    def read(split: str, items: Sequence[Example], shard: ShardWriter) -> Iterator[None]:
        for example in items:
            yield shard.add(example)

    place = _open(directory, [name, *splits], overwrite, resumes=False)
    card = _card(name, ids, description, words)
    with place.locked():
        shards = _write_shards(place, collected(), read, "", lambda shard: True, overwrite)
        if not any(shard.images for shard in shards):
            raise UserError("there is no image to write")
        check_contents(shards)
        rest = {"settings": dict(settings), "dropped": {}}
        return _finish(place, shards, list(splits), card, rest, (words, None), overwrite)


def write_resumable(
    directory: PathLike,
    items: Mapping[str, Sequence[T]],
    read: Reader[T],
    *,
    key: str,
    name: str,
    description: str,
    settings: Mapping[str, Any],
    problems: Problems,
    is_current: Callable[[Shard], bool] = lambda shard: True,
    before_publishing: Callable[[], None] = lambda: None,
    ids: str = "",
    words: Words = PTB,
    tokenizer: CaptionTokenizer | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset shard by shard; broken off, the same call continues.

    Args:
      items: {split: what `read` makes examples of, in order}. Splits are written in this order.
      key: of all that decides what is written; with another key than that of an unfinished dataset
        it starts anew.
      problems: receives what `read` dropped (`shard.extra["dropped"]`, `Problems.to_json`).
      is_current: whether a shard that was finished before is still what `read` would write.
      before_publishing: a last look at the problems; it raises where something is amiss.
      tokenizer: counts the lengths of captions in tokens.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: see `write`. Shards that were finished are kept.
    """
    place = _open(directory, [name, *items], overwrite)
    card = _card(name, ids, description, words)
    with place.locked():
        shards = _write_shards(place, items, read, key, is_current, overwrite)
        for shard in shards:
            problems.merge(shard.extra.get("dropped", {}))
        empty = not any(shard.images for shard in shards)
        if empty:
            place.forget()
        before_publishing()
        if empty:
            why = problems.told() or " | ".join(problems.lines()) or "none is listed"
            raise UserError(f"there is no image to write: {why}")
        hint = ": --duplicates=drop leaves out those of the split that is trained on"
        check_contents(shards, hint)
        rest: dict[str, Any] = {"settings": dict(settings), "dropped": dict(problems.counts)}
        if problems.examples:
            rest["dropped_examples"] = dict(problems.examples)
        splits = sorted(items, key=report_order)
        return _finish(place, shards, splits, card, rest, (words, tokenizer), overwrite)


def _card(name: str, ids: str, description: str, words: Words) -> dict[str, Any]:
    """The beginning of `dataset.json`; one that names no words means PTB's."""
    card = {"name": name, "ids": ids, "description": description}
    return card if words is PTB else {**card, "words": words.name}


def _open(
    directory: PathLike, names: Sequence[str], overwrite: bool, *, resumes: bool = True
) -> Staged:
    check_free(directory, overwrite=overwrite)
    for word in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            raise UserError(f"{word!r:.60} cannot name a dataset or split; use lower-case letters")
    return Staged(directory, *_KIND, resumes=resumes)


_KIND = ("dataset", "dataset_info.json")


def check_free(directory: PathLike, *, overwrite: bool) -> None:
    """Raises UserError when `directory` holds something that must not be replaced."""
    staged.check_free(directory, *_KIND, overwrite=overwrite)


def _write_shards(
    place: Staged,
    items: Mapping[str, Sequence[T]],
    read: Reader[T],
    key: str,
    is_current: Callable[[Shard], bool],
    overwrite: bool,
) -> list[Shard]:
    place.check_free(overwrite=overwrite)  # another process may just have finished
    state = place.begin({"captions, images or settings": key}, anew=True)
    shards: list[Shard] = []
    with progress(sum(map(len, items.values())), desc="writing images", unit="images") as bar:
        if state == "cleared":
            other = "with other captions, images or settings"
            bar.write(f"{place.path} was begun {other}: starting anew")
        for split, those in items.items():
            for start in range(0, len(those), EXAMPLES_PER_SHARD):
                stretch = those[start : start + EXAMPLES_PER_SHARD]
                name = _name(split, start // EXAMPLES_PER_SHARD)
                record = place.record(name)
                shard = Shard(**record) if record else Shard(split)
                # Once files move to their final names, all was read and found to be in order.
                if record and (place.whole.exists() or is_current(shard)):
                    if state == "continued":
                        bar.write(f"{place.path} is there: continuing")
                        state = ""
                    bar.update(len(stretch))
                else:
                    shard = Shard(split)
                    with place.writing(name) as (path, index), RecordFile(path) as file:
                        for _ in read(split, stretch, ShardWriter(shard, file)):
                            bar.update()
                        index |= vars(shard)
                shards.append(shard)
    return shards


def _name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


def report_order(split: str) -> tuple[int, str]:
    """Training first, then what is held out, then the rest."""
    usual = ("train", "restval", "val", "test")
    return (usual.index(split) if split in usual else len(usual)), split


def _describe(
    directory: pathlib.Path,
    shards: Sequence[Shard],
    splits: Sequence[str],
    card: dict[str, Any],
    counted: Counted,
) -> dict[str, Any]:
    """Writes what stands beside the records; returns `dataset.json` without its settings."""
    from har_jax.metrics.cider_d import DocumentFrequency

    words, tokenizer = counted
    found = [s for s in splits if any(x.images for x in shards if x.split == s)]
    figures: dict[str, Any] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    for split in found:
        own = [shard for shard in shards if shard.split == split and shard.images]
        sizes[split] = [(len(shard.images), shard.num_bytes) for shard in own]
        images = [image for shard in own for image in shard.images]
        annotations = [annotation for shard in own for annotation in shard.annotations]
        index = {"images": images, "annotations": annotations}
        captions_path(directory, split).write_text(json.dumps(index))
        by_image: dict[int, list[list[str]]] = {image["id"]: [] for image in images}
        for annotation in annotations:
            # Interned: COCO has 6 million words but 30,000 different ones.
            found_words = [sys.intern(word) for word in words(annotation["caption"])]
            by_image[annotation["image_id"]].append(found_words)
        figures[split] = word_figures(list(by_image.values()))
        if tokenizer is not None:
            lengths = [
                len(ids) for ids in tokenizer.encode_batch([a["caption"] for a in annotations])
            ]
            figures[split]["tokens_per_caption"] = token_figures(lengths)
        copies = len(images) - len({image["sha256"] for image in images})
        if copies:
            figures[split]["copies"] = copies
        domains = [image["domain"] for image in images if "domain" in image]
        if domains:
            figures[split]["domains"] = {d: domains.count(d) for d in sorted(set(domains))}
        # Of every split, since some train on another than "train"; each costs a few hundred kB.
        frequencies = DocumentFrequency.from_references(
            list(by_image.values()), name=split, words_by=words.signature
        )
        frequencies.save(document_frequency_path(directory, split))
    write_description(directory, card["name"], card["description"], sizes)
    return {**card, "made_by": f"har_jax {__version__}", "splits": figures}


def _files(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What the card says of the files beside it (`description.FileEntry`)."""
    found = {}
    for path in sorted(directory.iterdir()):
        found[path.name] = {"bytes": path.stat().st_size}
        if f".{FORMAT}-" not in path.name:  # records have sums of their own
            found[path.name]["sha256"] = sha256(path)
    return found


def check_contents(shards: Iterable[Shard], hint: str = "") -> None:
    """Raises UserError where the same bytes are in two splits: a test of what was trained on."""
    home: dict[str, tuple[str, Mapping[str, Any]]] = {}
    clashes: list[str] = []
    for shard in shards:
        for image in shard.images:
            split, other = home.setdefault(image["sha256"], (shard.split, image))
            if split != shard.split:
                clashes.append(
                    f"{other['file_name']} (id {other['id']}, {split}) = {image['file_name']} "
                    f"(id {image['id']}, {shard.split})"
                )
    if clashes:
        named = "; ".join(clashes[:5]) + ("; ..." if len(clashes) > 5 else "")
        raise UserError(
            f"{len(clashes)} images have the same bytes as one of another split: {named}; splits "
            f"must not share images{hint}"
        )


def _finish(
    place: Staged,
    shards: Sequence[Shard],
    splits: Sequence[str],
    card: dict[str, Any],
    rest: Mapping[str, Any],
    counted: Counted,
    overwrite: bool,
) -> dict[str, Any]:
    """Publishes; returns `dataset.json`, which is `card`, the figures of the splits, and `rest`."""

    def arrange() -> None:
        nonlocal card
        place.whole.mkdir(exist_ok=True)
        card = _describe(place.whole, shards, splits, card, counted) | dict(rest)
        for split in splits:
            own = [shard for shard in shards if shard.split == split]
            full = [number for number, shard in enumerate(own) if shard.images]
            for final, number in enumerate(full):
                place.move(_name(split, number), shard_name(card["name"], split, final))
        (place.whole / CARD).unlink(missing_ok=True)  # of a finish that a kill broke off
        card["files"] = _files(place.whole)
        (place.whole / CARD).write_text(json.dumps(card, indent=2) + "\n")

    place.finish(arrange, overwrite=overwrite)
    return card
