"""COCO captions JSON and Karpathy's JSON to entries.

Two formats are read, told apart by what is in them:

    COCO       {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
               one split per file (captions_train2017.json)
    Karpathy   {"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}
               all splits in one file (dataset_coco.json, Karpathy & Fei-Fei, arXiv 1412.2306)

Image ids are COCO's in both, so that splits made from either can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Entry, Problems, Reading, usable
from har_jax.errors import UserError
from har_jax.files import read_json

RESTVAL = ("train", "keep", "drop")
_FORMATS = "COCO captions JSON or Karpathy's dataset_coco.json"


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
    path: PathLike,
    split: str | None,
    restval: str,
    default_split: str,
    problems: Problems,
) -> tuple[list[Entry], str]:
    """(entries, id space) of one file; see `read_files`."""
    data = read_json(path, _FORMATS)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        raise UserError(
            f"{path} is not a captions file: it must be an object with a list 'images'; got "
            f"{_shape(data)}"
        )
    space = "coco"
    try:
        if "sentences" in images[0]:
            if split is not None:
                raise UserError(
                    f"--split={split} does not go with {path}, which names the split of each image"
                )
            entries = list(_karpathy(images, restval))
            if "cocoid" not in images[0]:  # Flickr's files of the same format
                space = str(data.get("dataset", ""))
        elif isinstance(data.get("annotations"), list):
            split = split or default_split
            entries = list(_coco(images, data["annotations"], split, problems))
        else:
            raise UserError(
                f"{path} has 'images' but neither 'annotations' (COCO) nor 'sentences' in each "
                f"image (Karpathy); got {_shape(data)}"
            )
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"the key {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} is not a captions file: an entry has trouble with {what}; expected COCO's or "
            "Karpathy's format"
        ) from error
    return list(usable(entries, problems)), space


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
        yield Entry(
            split,
            image_id,
            (str(image["file_name"]),),
            tuple(captions[image_id]),
            domain=str(image.get("domain", "")),
        )


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
