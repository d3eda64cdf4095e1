"""COCO captions JSON, Karpathy's and nocaps' to entries.

Two formats are read, told apart by what is in them:

    COCO       {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
               one split per file (captions_train2017.json)
    Karpathy   {"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}
               all splits in one file (dataset_coco.json, Karpathy & Fei-Fei, arXiv 1412.2306)

Image ids are COCO's in both, so that splits made from either can be compared.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Entry, Problems, Reading, usable
from har_jax.errors import UserError
from har_jax.foreign import read_json

RESTVAL = ("train", "keep", "drop")
_DOMAINS = ("in-domain", "near-domain", "out-domain")
FORMATS = "COCO captions JSON or Karpathy's dataset_coco.json"


def read_files(
    paths: Sequence[PathLike],
    *,
    splits: Sequence[str] | None = None,
    restval: str = "train",
    default_split: str = "train",
    problems: Problems,
) -> Reading:
    """The images of some annotation files, each with its usable captions.

    Args:
      splits: that each COCO file makes; None: `default_split` (Karpathy's files name their own).
      restval: what becomes of Karpathy's "restval": "train", "keep" or "drop".
      problems: receives what is dropped.

    Raises:
      UserError: no such file, not JSON, cut off, of neither format, or not of one id space.
    """
    if splits is not None and len(splits) != len(paths):
        raise UserError(
            f"got {len(paths)} captions files but {len(splits)} splits; give one for each"
        )
    if restval not in RESTVAL:
        raise UserError(f"restval is {restval!r}; allowed are {', '.join(RESTVAL)}")
    entries: list[Entry] = []
    spaces: dict[str, PathLike] = {}
    for number, path in enumerate(paths):
        split = splits[number] if splits else None
        found, space = read_file(path, split, restval, default_split, problems)
        entries += found
        spaces.setdefault(space, path)
    if len(spaces) > 1:
        raise UserError(
            "the captions files are of different datasets, whose ids mean different images: "
            + ", ".join(f"{path} ({space})" for space, path in spaces.items())
            + "; prepare each by itself"
        )
    return Reading(entries, next(iter(spaces)))


def read_file(
    path: PathLike, split: str | None, restval: str, default_split: str, problems: Problems | None
) -> tuple[list[Entry], str]:
    """(entries, id space) of one file; see `read_files`.

    Without `problems` nothing is dropped, and nothing is looked at but the shape of the file: what
    is evaluated with other people's references is what these people would evaluate with.
    """
    data = read_json(path, FORMATS)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} has no list `images`; got {_shape(data)}, give {FORMATS}")
    if isinstance(data.get("annotations"), list):
        entries = _coco(path, images, data["annotations"], split or default_split, problems)
        space = "coco"
    elif images and isinstance(images[0], dict) and "sentences" in images[0]:
        if split is not None:
            raise UserError(
                f"--split={split} does not go with {path}, which names the split of each image"
            )
        entries = _karpathy(path, images, restval)
        # Flickr's files of the same format have no COCO ids.
        space = "coco" if "cocoid" in images[0] else str(data.get("dataset", ""))
    else:
        raise UserError(
            f"{path} has a list `images`, but neither `annotations` (COCO) nor `sentences` in each "
            f"image (Karpathy); got {_shape(data)}, give {FORMATS}"
        )
    return list(entries if problems is None else usable(entries, problems)), space


def _shape(data: Any) -> str:
    if isinstance(data, dict):
        return f"an object with the keys {sorted(data)[:8]}"
    return f"a {type(data).__name__}"


def _coco(
    path: PathLike,
    images: Sequence[Any],
    annotations: Sequence[Any],
    split: str,
    problems: Problems | None,
) -> list[Entry]:
    captions: dict[int, list[tuple[int, Any]]] = {}
    listed: list[tuple[int, tuple[str, ...], str]] = []
    seen: set[int] = set()

    def take_image(_: int, image: Any) -> None:
        image_id = _whole(image["id"])
        # Only who looks for the files needs their names.
        name = image["file_name"] if problems is not None else image.get("file_name", "")
        listed.append((image_id, (str(name),) if name else (), str(image.get("domain", ""))))
        captions[image_id] = []

    def take_annotation(number: int, annotation: Any) -> None:
        image_id, text = _whole(annotation["image_id"]), annotation["caption"]
        caption_id = _whole(annotation.get("id", number))
        if problems is None:
            captions.setdefault(image_id, []).append((caption_id, text))
        elif caption_id in seen:
            problems.add("captions with the id of another", caption_id)
        elif image_id not in captions:
            problems.add("captions of images that are not listed", f"caption {caption_id}")
        else:
            captions[image_id].append((caption_id, text))
        seen.add(caption_id)

    _each(path, "image", images, take_image)
    known = len(captions)
    _each(path, "annotation", annotations, take_annotation)
    listed += [(image_id, (), "") for image_id in list(captions)[known:]]
    return [
        Entry(split, image_id, names, tuple(captions[image_id]), domain=domain)
        for image_id, names, domain in listed
    ]


def _karpathy(path: PathLike, images: Sequence[Any], restval: str) -> list[Entry]:
    entries: list[Entry] = []
    count = 0

    def take(number: int, image: Any) -> None:
        nonlocal count
        split = image["split"]
        if split == "restval":
            if restval == "drop":
                return
            split = "train" if restval == "train" else split
        # Flickr's files of the same format have no COCO ids.
        image_id = _whole(image.get("cocoid", image.get("imgid", number)))
        name, folder = str(image["filename"]), str(image.get("filepath", ""))
        names = (name, f"{folder}/{name}") if folder else (name,)
        captions = tuple(
            (_whole(sentence.get("sentid", place)), sentence["raw"])
            for place, sentence in enumerate(image["sentences"], count)
        )
        count += len(captions)
        entries.append(Entry(split, image_id, names, captions))

    _each(path, "image", images, take)
    return entries


def _each(path: PathLike, kind: str, rows: Sequence[Any], take: Callable[[int, Any], None]) -> None:
    """`take(number, row)` of each; what is malformed is named."""
    number = 0
    try:
        for number, row in enumerate(rows):
            take(number, row)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"has trouble: {error}"
        raise UserError(
            f"{path} is not a captions file: {kind} {number} {what}; give {FORMATS}"
        ) from error


def _whole(value: Any) -> int:
    """An id, which some tools write as a text."""
    if type(value) is int:
        return value
    number = int(value)
    if isinstance(value, float) and value != number:
        raise ValueError(f"the id {value}, which is no whole number")
    return number


def read_nocaps(path: PathLike, *, split: str = "val", problems: Problems) -> Reading:
    """nocaps' validation set (Agrawal et al., arXiv 1812.08658): COCO's format, and of each image
    the `domain` that it belongs to, its objects being all of COCO's classes, some, or none.

    Raises:
      UserError: see `read_files`; or an image of no domain.
    """
    reading = read_files([path], splits=[split], problems=problems)
    unknown = [entry for entry in reading.entries if entry.domain not in _DOMAINS]
    if unknown:
        seen = collections.Counter(entry.domain or "none" for entry in unknown)
        raise UserError(
            f"{path} is not nocaps' captions file: {len(unknown)} of {len(reading.entries)} images "
            f"have no domain of {', '.join(_DOMAINS)} (such as image {unknown[0].image_id}: "
            f"{next(iter(seen))}); for other files in COCO's format use `prepare coco`"
        )
    return Reading(reading.entries, "nocaps")
