"""COCO captions and their kin: annotation files and image folders to examples.

Two formats are read, told apart by what is in them:

    COCO       {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
               one split per file (captions_train2017.json)
    Karpathy   {"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}
               all splits in one file (dataset_coco.json, Karpathy & Fei-Fei, arXiv 1412.2306)

Image ids are COCO's in both, so that splits made from either can be compared. What cannot be used
is dropped, counted and reported by kind; `strict` makes that an error.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from har_jax.data import writer
from har_jax.data.dataset import Example
from har_jax.data.images import decode
from har_jax.errors import UserError
from har_jax.files import read_json
from har_jax.progress import track

PathLike = str | os.PathLike[str]

RESTVAL = ("train", "keep", "drop")
_LISTED = 5  # offenders of each kind that are named


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of an annotation file, not yet looked for on disk.

    Attributes:
      split: which split it belongs to.
      image_id: COCO's.
      names: file names to look for in each image folder, best first.
      captions: (caption id, text).
    """

    split: str
    image_id: int
    names: tuple[str, ...]
    captions: tuple[tuple[int, str], ...]


class Problems:
    """What was dropped, by kind, with some examples of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = collections.defaultdict(int)
        self.examples: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, example: object) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _LISTED:
            self.examples[kind].append(str(example))

    def lines(self) -> list[str]:
        """One line per kind: how many, and the first few."""
        rows = []
        for kind, count in self.counts.items():
            named = "; ".join(self.examples[kind])
            more = f"; and {count - _LISTED} more" if count > _LISTED else ""
            rows.append(f"{count} {kind}: {named}{more}")
        return rows

    def refuse(self) -> None:
        """Raises UserError when anything was dropped."""
        if self.counts:
            raise UserError("strict drops nothing, but there are " + " | ".join(self.lines()))


def read_annotations(
    path: PathLike, *, split: str | None, restval: str = "train", problems: Problems
) -> list[Entry]:
    """The images of one annotation file, each with its usable captions.

    Args:
      split: the split that a COCO file makes, "train" by default; a Karpathy file names its own.
      restval: what becomes of Karpathy's "restval": "train", "keep" or "drop".
      problems: receives what is dropped.

    Raises:
      UserError: no such file, not JSON, cut off, or of neither format.
    """
    if restval not in RESTVAL:
        raise UserError(f"restval is {restval!r}; allowed are {', '.join(RESTVAL)}")
    data = read_json(path, "COCO captions JSON or Karpathy's dataset_coco.json")
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        raise UserError(
            f"{path} is not a captions file: it must be an object with a list 'images'; got "
            f"{_shape(data)}"
        )
    try:
        if "sentences" in images[0]:
            if split is not None:
                raise UserError(
                    f"--split={split} does not go with {path}, which names the split of each image"
                )
            entries = list(_karpathy(images, restval))
        elif isinstance(data.get("annotations"), list):
            entries = list(_coco(images, data["annotations"], split or "train", problems))
        else:
            raise UserError(
                f"{path} has 'images' but neither 'annotations' (COCO) nor 'sentences' in each "
                f"image (Karpathy); got {_shape(data)}"
            )
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"the key {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} is not a captions file: an entry has trouble with {what}; expected COCO's or "
            "Karpathy's format"
        ) from error
    return list(_usable(entries, problems))


def _shape(data: Any) -> str:
    if isinstance(data, dict):
        return f"an object with the keys {sorted(data)[:8]}"
    return f"a {type(data).__name__}"


def _coco(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    split: str,
    problems: Problems,
) -> Iterator[Entry]:
    captions: dict[int, list[tuple[int, Any]]] = {int(image["id"]): [] for image in images}
    seen: set[int] = set()
    for annotation in annotations:
        caption_id, image_id = int(annotation["id"]), int(annotation["image_id"])
        if caption_id in seen:
            problems.add("captions with the id of another", caption_id)
        elif image_id not in captions:
            problems.add("captions of images that are not listed", f"caption {caption_id}")
        else:
            captions[image_id].append((caption_id, annotation["caption"]))
        seen.add(caption_id)
    for image in images:
        image_id = int(image["id"])
        yield Entry(split, image_id, (str(image["file_name"]),), tuple(captions[image_id]))


def _karpathy(images: Sequence[Mapping[str, Any]], restval: str) -> Iterator[Entry]:
    for number, image in enumerate(images):
        split = image["split"]
        if split == "restval":
            if restval == "drop":
                continue
            split = "train" if restval == "train" else split
        # Flickr's files of the same format have no COCO ids.
        image_id = int(image.get("cocoid", image.get("imgid", number)))
        name, folder = str(image["filename"]), str(image.get("filepath", ""))
        names = (name, f"{folder}/{name}") if folder else (name,)
        captions = tuple((int(s["sentid"]), s["raw"]) for s in image["sentences"])
        yield Entry(split, image_id, names, captions)


def _usable(entries: Sequence[Entry], problems: Problems) -> Iterator[Entry]:
    """Drops captions that are no text and images that are left without any."""
    seen: set[int] = set()
    for entry in entries:
        name = f"{entry.names[0]} (id {entry.image_id})"
        if entry.image_id in seen:
            problems.add("images listed twice", name)
            continue
        seen.add(entry.image_id)
        good = []
        for caption_id, text in entry.captions:
            if not isinstance(text, str):
                problems.add("captions that are not text", f"caption {caption_id}: {text!r}")
            elif not text.strip():
                problems.add("empty captions", f"caption {caption_id}")
            else:
                good.append((caption_id, text))
        if good:
            yield dataclasses.replace(entry, captions=tuple(good))
        else:
            problems.add("images without captions", name)


def read_examples(
    entries: Sequence[Entry], folders: Sequence[PathLike], *, problems: Problems
) -> Iterator[tuple[str, Example]]:
    """Yields (split, example) with the bytes of each image as they are on disk.

    Every image is decoded once to see that it can be; those that cannot, or are not there, are
    dropped.

    Args:
      folders: where images are looked for, in this order.

    Raises:
      UserError: a folder is missing, or an image is in two splits.
    """
    roots = [pathlib.Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"--images={root}: there is no such directory")
    _check_disjoint(entries)

    def read(entry: Entry) -> tuple[Entry, bytes | None, str]:
        places = (root / name for root in roots for name in entry.names)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return entry, None, "missing"
        try:
            data = path.read_bytes()
            decode(data, name=str(path), upright=False)
        except (UserError, OSError) as error:
            return entry, None, str(error)
        return entry, data, ""

    threads = min(16, os.cpu_count() or 1)
    waiting = iter(entries)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # In bunches, so that a slow disk behind us does not fill the memory with images.
        while bunch := list(itertools.islice(waiting, 8 * threads)):
            for entry, data, trouble in pool.map(read, bunch):
                if data is None:
                    kind = "image files that are missing"
                    if trouble != "missing":
                        kind = "images that do not decode"
                    problems.add(kind, entry.names[0] if trouble == "missing" else trouble)
                    continue
                ids = tuple(caption_id for caption_id, _ in entry.captions)
                texts = [text for _, text in entry.captions]
                name = pathlib.PurePosixPath(entry.names[0]).name
                yield entry.split, Example(entry.image_id, name, data, texts, ids)


def prepare(
    out: PathLike,
    *,
    captions: Sequence[PathLike],
    images: Sequence[PathLike],
    splits: Sequence[str] | None = None,
    restval: str = "train",
    strict: bool = False,
    overwrite: bool = False,
) -> tuple[dict[str, Any], Problems]:
    """Reads annotation files and image folders, and writes a dataset.

    Args:
      captions: annotation files; images: folders that are searched for every one of them.
      splits: of each COCO file; None: "train" for all (Karpathy's files name their own).
      strict: raise instead of dropping anything.

    Returns:
      (`dataset.json`, what was dropped).

    Raises:
      UserError: see `read_annotations`, `read_examples` and `writer.write`.
    """
    if splits is not None and len(splits) != len(captions):
        raise UserError(
            f"got {len(captions)} captions files but {len(splits)} splits; give one for each"
        )
    writer.check_free(out, overwrite=overwrite)
    problems = Problems()
    entries: list[Entry] = []
    for number, path in enumerate(captions):
        split = splits[number] if splits else None
        entries += read_annotations(path, split=split, restval=restval, problems=problems)
    if strict:
        problems.refuse()

    def examples() -> Iterator[tuple[str, Example]]:
        found = read_examples(entries, images, problems=problems)
        yield from track(found, total=len(entries), desc="reading images", unit="images")
        if strict:
            problems.refuse()

    card = writer.write(
        out,
        examples(),
        name="coco",
        splits=list(dict.fromkeys(entry.split for entry in entries)),
        description="Images and captions in COCO's format.",
        settings={
            "captions": [os.fspath(path) for path in captions],
            "images": [os.fspath(path) for path in images],
            "restval": restval,
        },
        dropped=problems.counts,
        overwrite=overwrite,
    )
    return card, problems


def _check_disjoint(entries: Sequence[Entry]) -> None:
    """An image in two splits would make a test of what was trained on."""
    home: dict[int, str] = {}
    for entry in entries:
        other = home.setdefault(entry.image_id, entry.split)
        if other != entry.split:
            raise UserError(
                f"image {entry.image_id} is in {other!r} and in {entry.split!r}; splits must not "
                "share images (COCO 2014 and 2017 name the same ones)"
            )
