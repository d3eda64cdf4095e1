"""Writes a dataset (see `data.dataset` for what is in it): whole, or not at all.

`write` takes a stream of examples. `write_resumable` takes lists of items and a function that reads
them, and continues where a run of the same key was broken off. Both write shards beside the final
directory (`data.staged`), which appears at the end by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from har_jax.data.dataset import (
    CARD,
    Example,
    PathLike,
    captions_path,
    document_frequency_path,
    quiet,
)
from har_jax.data.entries import Problems
from har_jax.data.records import shard_name, write_description
from har_jax.data.staged import Partial, Shard, ShardWriter, open_partial
from har_jax.data.tally import Tally, token_figures
from har_jax.errors import UserError
from har_jax.progress import progress
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.version import __version__

T = TypeVar("T")
Reader = Callable[[str, Sequence[T], ShardWriter], Iterator[None]]
"""(split, items, shard): adds the items to the shard and yields after each; what it drops goes into
`shard.extra`."""

EXAMPLES_PER_SHARD = 1024  # what a kill costs at most; 150 MB of COCO's photographs
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write(
    directory: PathLike,
    examples: Iterable[tuple[str, Example]],
    *,
    name: str,
    splits: Sequence[str],
    description: str,
    settings: Mapping[str, Any],
    dropped: Mapping[str, int] | None = None,
    ids: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset from a stream; broken off, it leaves nothing.

    Args:
      examples: (split, example) in any order.
      name: of the dataset: a lower-case word.
      splits: all the splits, also those that may stay empty (which are then left out).
      settings: how it was made, JSON-able; goes to `dataset.json`.
      dropped: {kind: count} of what `examples` left out, read after the last example.
      ids: the id space, see `data.entries.Reading`.
      overwrite: replace what is at `directory`.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: `directory` is taken, a name is malformed, ids repeat, an image is in two splits,
        the disk is full, or nothing was given.
    """
    directory = pathlib.Path(directory)
    _check(directory, [name, *splits], overwrite)
    with open_partial(directory) as partial, _full_disk(directory, None):
        check_free(directory, overwrite=overwrite)  # another may just have finished
        try:
            partial.begin(uuid.uuid4().hex)  # a key of no other: a stream is not continued
            shards = _write_stream(partial, examples, splits)
            if not shards:
                raise UserError("there is no image to write")
            check_contents(shards)
            card = {"name": name, "ids": ids, "description": description}
            card = _describe(partial, shards, splits, card, None)
            card |= {"settings": dict(settings), "dropped": dict(dropped or {})}
            _finish(partial, directory, shards, card, overwrite=overwrite)
        finally:
            partial.forget()
    return card


def _write_stream(
    partial: Partial, examples: Iterable[tuple[str, Example]], splits: Sequence[str]
) -> list[Shard]:
    shards: list[Shard] = []
    seen: set[int] = set()
    next_caption_id = 1
    with contextlib.ExitStack() as stack:
        writers: dict[str, tuple[ShardWriter, contextlib.ExitStack]] = {}

        def close(split: str) -> None:
            writer, own = writers.pop(split)
            own.close()
            shards.append(writer.shard)

        for split, example in examples:
            if example.image_id in seen:
                raise UserError(
                    f"image id {example.image_id} occurs twice; image ids must be unique"
                )
            seen.add(example.image_id)
            ids = example.caption_ids
            if len(ids) != len(example.captions):
                ids = range(next_caption_id, next_caption_id + len(example.captions))
                next_caption_id = ids.stop
            if split not in writers:
                number = sum(shard.split == split for shard in shards)
                own = stack.enter_context(contextlib.ExitStack())
                writers[split] = own.enter_context(partial.writing(split, number)), own
            writers[split][0].add(example, ids)
            if len(writers[split][0]) >= EXAMPLES_PER_SHARD:
                close(split)
        for split in list(writers):
            close(split)
    return sorted(shards, key=lambda shard: (splits.index(shard.split), shard.number))


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
    before_publishing: Callable[[list[Shard]], None] = lambda shards: None,
    ids: str = "",
    tokenizer: CaptionTokenizer | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a dataset shard by shard; broken off, the same call continues.

    Args:
      items: {split: what `read` makes examples of, in order}. Splits are written in this order.
      key: of all that decides what is written; another key than that of the partial directory
        starts anew.
      problems: receives what `read` dropped (`shard.extra["dropped"]`, `Problems.to_json`).
      is_current: whether a shard that was finished before is still what `read` would write.
      before_publishing: a last look at all shards; it raises where something is amiss.
      tokenizer: counts the lengths of captions in tokens.

    Returns:
      The contents of `dataset.json`.

    Raises:
      UserError: see `write`. Shards that were finished are kept.
    """
    directory = pathlib.Path(directory)
    _check(directory, [name, *items], overwrite)
    with open_partial(directory) as partial, _full_disk(directory, partial):
        check_free(directory, overwrite=overwrite)  # another may just have finished
        state = partial.begin(key)
        found = _write_items(partial, items, read, is_current, state)
        for shard in found:
            problems.merge(shard.extra.get("dropped", {}))
        empty = not any(shard.images for shard in found)
        if empty:
            partial.forget()
        before_publishing(found)
        if empty:
            why = " | ".join(problems.lines()) or "none is listed"
            raise UserError(f"there is no image to write: {why}")
        check_contents(
            found, hint=": --duplicates=drop leaves out those of the split that is trained on"
        )
        card = {"name": name, "ids": ids, "description": description}
        card = _describe(partial, found, sorted(items, key=report_order), card, tokenizer)
        card |= {"settings": dict(settings), "dropped": dict(problems.counts)}
        _finish(partial, directory, found, card, overwrite=overwrite)
        partial.forget()
    return card


def _write_items(
    partial: Partial,
    items: Mapping[str, Sequence[T]],
    read: Reader[T],
    is_current: Callable[[Shard], bool],
    state: str | None,
) -> list[Shard]:
    size = EXAMPLES_PER_SHARD
    stretches = [
        (split, number, those[start : start + size])
        for split, those in items.items()
        for number, start in enumerate(range(0, len(those), size))
    ]
    total = sum(map(len, items.values()))
    shards: list[Shard] = []
    done = 0
    with progress(total, desc="reading images", unit="images") as bar:
        if state == "cleared":
            bar.write(
                f"{partial.path} was begun with other captions, images or settings: starting anew"
            )
        for split, number, stretch in stretches:
            shard = partial.finished(split, number)
            # Once files move to their final names, all was read and found to be in order.
            if shard is None or not (partial.dataset.exists() or is_current(shard)):
                try:
                    with partial.writing(split, number) as writer:
                        for _ in read(split, stretch, writer):
                            bar.update()
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(
                        f"{done} of {total} images are kept in {partial.path}; "
                        "the same command continues"
                    ) from None
                shard = writer.shard
            else:
                if state == "continued":
                    bar.write(f"{partial.path} is there: continuing")
                    state = None
                bar.update(len(stretch))
            shards.append(shard)
            done += len(stretch)
    return shards


def report_order(split: str) -> tuple[int, str]:
    """Training first, then what is held out, then the rest."""
    usual = ("train", "restval", "val", "test")
    return (usual.index(split) if split in usual else len(usual)), split


def _check(directory: pathlib.Path, names: Sequence[str], overwrite: bool) -> None:
    check_free(directory, overwrite=overwrite)
    for word in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            raise UserError(f"{word!r} cannot name a dataset or split; use lower-case letters")


def check_free(directory: PathLike, *, overwrite: bool) -> None:
    """Raises UserError when `directory` holds something that must not be replaced."""
    directory = pathlib.Path(directory)
    if directory.is_dir():
        if any(directory.iterdir()) and not overwrite:
            raise UserError(
                f"{directory} exists and is not empty; choose another --out or pass --overwrite"
            )
        if (
            overwrite
            and any(directory.iterdir())
            and not (directory / "dataset_info.json").exists()
        ):
            raise UserError(f"{directory} is not a dataset; --overwrite replaces datasets only")
    elif directory.exists():
        raise UserError(f"{directory} is a file; --out must name a directory")


@contextlib.contextmanager
def _full_disk(directory: pathlib.Path, kept: Partial | None) -> Iterator[None]:
    """Says in a line that a disk is full, or broken, and what is left there."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = "nothing was left there"
        if kept is not None:
            left = (
                f"finished shards are kept in {kept.path}: make room and give the same command "
                "again, or delete it"
            )
        raise UserError(f"cannot write {directory}: {error.strerror}; {left}") from error


def _describe(
    partial: Partial,
    shards: Sequence[Shard],
    splits: Sequence[str],
    card: dict[str, Any],
    tokenizer: CaptionTokenizer | None,
) -> dict[str, Any]:
    """Writes what stands beside the records; returns `dataset.json` without its settings."""
    from har_jax.metrics.cider_d import DocumentFrequency
    from har_jax.text import ptb

    found = [s for s in splits if any(x.images for x in shards if x.split == s)]
    partial.dataset.mkdir(exist_ok=True)
    figures: dict[str, Any] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    for split in found:
        own = [shard for shard in shards if shard.split == split and shard.images]
        sizes[split] = [(len(shard.images), shard.num_bytes) for shard in own]
        images = [image for shard in own for image in shard.images]
        annotations = [annotation for shard in own for annotation in shard.annotations]
        index = {"images": images, "annotations": annotations}
        captions_path(partial.dataset, split).write_text(json.dumps(index))
        texts = [annotation["caption"] for annotation in annotations]
        by_image: dict[int, list[list[str]]] = {image["id"]: [] for image in images}
        for annotation in annotations:
            # Interned: COCO has 6 million words but 30,000 different ones.
            words = [sys.intern(word) for word in ptb.words(annotation["caption"])]
            by_image[annotation["image_id"]].append(words)
        tally = Tally()
        for words in by_image.values():
            tally.add(words)
        figures[split] = tally.summary()
        if tokenizer is not None:
            lengths = [len(ids) for ids in tokenizer.encode_batch(texts)]
            figures[split]["tokens_per_caption"] = token_figures(lengths)
        copies = len(images) - len({image["sha256"] for image in images})
        if copies:
            figures[split]["copies"] = copies
        domains = [image["domain"] for image in images if "domain" in image]
        if domains:
            figures[split]["domains"] = {d: domains.count(d) for d in sorted(set(domains))}
        # Of every split, since some train on another than "train"; each costs a few hundred kB.
        frequencies = DocumentFrequency.from_references(list(by_image.values()), name=split)
        frequencies.save(document_frequency_path(partial.dataset, split))
    write_description(partial.dataset, card["name"], card["description"], sizes)
    return {**card, "made_by": f"har_jax {__version__}", "splits": figures}


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
    partial: Partial,
    directory: pathlib.Path,
    shards: Sequence[Shard],
    card: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Moves everything under its final name; what was there goes away last."""
    (partial.dataset / CARD).write_text(json.dumps(card, indent=2) + "\n")
    numbers: dict[str, int] = {}
    for shard in shards:
        if shard.images:
            number = numbers.setdefault(shard.split, 0)
            final = partial.dataset / shard_name(card["name"], shard.split, number)
            if not final.exists():  # where a kill broke this off, it is there already
                os.replace(partial.file(shard), final)
            numbers[shard.split] += 1
    with quiet():
        _publish(partial, directory, overwrite=overwrite)


def _publish(partial: Partial, directory: pathlib.Path, *, overwrite: bool) -> None:
    check_free(directory, overwrite=overwrite)  # something may have come there meanwhile
    replaced = directory.exists() and any(directory.iterdir())
    if replaced:
        os.rename(directory, partial.old)
    try:
        os.rename(partial.dataset, directory)
    except OSError as error:
        if replaced and not directory.exists():
            os.rename(partial.old, directory)
        raise UserError(
            f"{directory} came into being while the dataset was written ({error.strerror}); "
            "is something else writing there?"
        ) from error
