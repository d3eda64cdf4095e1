"""References and predictions from the files that other tools write.

References come as COCO captions JSON (`images`, `annotations`) or as Karpathy's `dataset_coco.json`
(`images` with a `split` and `sentences`); predictions as COCO results.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.errors import UserError, did_you_mean
from har_jax.files import read_json
from har_jax.metrics.corpus import predictions_from_results

REFERENCES = "a COCO captions file (images, annotations) or Karpathy's dataset_coco.json"
RESULTS = 'COCO results: a list of {"image_id": ..., "caption": ...}'


@dataclasses.dataclass(frozen=True)
class References:
    """Captions by image id, and the images' file names and (nocaps') domains where it has them."""

    captions: dict[int, list[str]]
    filenames: dict[int, str]
    name: str
    domains: dict[int, str] = dataclasses.field(default_factory=dict)


def read_references(path: str | os.PathLike[str], split: str = "test") -> References:
    """Reads either format; `split` chooses in Karpathy's file ("train" includes its restval).

    Raises:
      UserError: not JSON, neither of the formats, an unknown split, an image without captions.
    """
    value = read_json(path, REFERENCES)
    name = os.path.basename(os.fspath(path))
    images = value.get("images") if isinstance(value, Mapping) else None
    if not isinstance(images, list):
        raise UserError(f"{str(path)!r} has no list `images`; give {REFERENCES}")
    if isinstance(value.get("annotations"), list):
        return _coco(value["annotations"], images, str(path), name)
    if images and all(isinstance(i, Mapping) and "sentences" in i for i in images):
        return _karpathy(images, str(path), name, split)
    raise UserError(
        f"{str(path)!r} has images, but neither `annotations` (COCO) nor `sentences` in each of "
        f"them (Karpathy); give {REFERENCES}"
    )


def _coco(annotations: Sequence[Any], images: Sequence[Any], path: str, name: str) -> References:
    captions: dict[int, list[str]] = {}
    for i, annotation in enumerate(annotations):
        try:
            image_id, text = annotation["image_id"], annotation["caption"]
        except (KeyError, TypeError):
            image_id = text = None
        if type(image_id) is not int or type(text) is not str:
            image_id = _field(annotation, "image_id", int, f"{path!r}: annotation {i}")
            text = _field(annotation, "caption", str, f"{path!r}: annotation {i}")
        captions.setdefault(image_id, []).append(text)
    if not captions:
        raise UserError(f"{path!r} holds no captions; give {REFERENCES}")
    filenames = {
        image["id"]: image["file_name"]
        for image in images
        if isinstance(image, Mapping) and {"id", "file_name"} <= set(image)
    }
    domains = {
        image["id"]: image["domain"]
        for image in images
        if isinstance(image, Mapping) and isinstance(image.get("domain"), str) and "id" in image
    }
    return References(captions, filenames, name, domains)


def _karpathy(images: Sequence[Mapping], path: str, name: str, split: str) -> References:
    wanted = {"train", "restval"} if split == "train" else {split}
    present = {str(image.get("split")) for image in images}
    if not wanted & present:
        raise UserError(
            f"--split={split}: {path!r} has no such split{did_you_mean(split, present)}; "
            f"it has {', '.join(sorted(present))}"
        )
    captions: dict[int, list[str]] = {}
    filenames: dict[int, str] = {}
    for i, image in enumerate(images):
        if image.get("split") not in wanted:
            continue
        where = f"{path!r}: image {i}"
        # COCO's ids are in `cocoid`; Flickr's files, in the same format, have only `imgid`.
        image_id = _field(image, "cocoid" if "cocoid" in image else "imgid", int, where)
        sentences = _field(image, "sentences", list, where)
        captions[image_id] = [_field(s, "raw", str, where) for s in sentences]
        if not captions[image_id]:
            raise UserError(f"{where} has no sentences")
        filenames[image_id] = os.path.join(image.get("filepath", ""), image.get("filename", ""))
    return References(captions, filenames, f"{name}:{split}")


def _field(row: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(row, Mapping) or key not in row:
        raise UserError(f"{where} has no {key!r}; give {REFERENCES}")
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UserError(f"{where} has {key} {value!r}, which is no {kind.__name__}")
    return value


def read_predictions(path: str | os.PathLike[str]) -> dict[int, str]:
    """Reads COCO results.

    Raises:
      UserError: not JSON, not such a list, empty, an entry without its keys, an image twice.
    """
    value = read_json(path, RESULTS)
    if not isinstance(value, list):
        raise UserError(f"{str(path)!r} holds a {type(value).__name__}, not a list; give {RESULTS}")
    if not value:
        raise UserError(f"{str(path)!r} holds no predictions; give {RESULTS}")
    try:
        return predictions_from_results(value)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None


def restrict(
    references: References, predictions: Mapping[int, str]
) -> tuple[dict[int, list[str]], str | None]:
    """The references of the predicted images, as pycocoevalcap takes them, and a warning if some
    images have none predicted (a CIDEr over fewer images has other document frequencies).

    Raises:
      UserError: a prediction for an image that has no references.
    """
    unknown = [image_id for image_id in predictions if image_id not in references.captions]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(predictions)} predictions are for images that "
            f"{references.name} has no references of, such as image {unknown[0]}; give the "
            "references (and --split) that belong to the predictions"
        )
    kept = {i: texts for i, texts in references.captions.items() if i in predictions}
    missing = len(references.captions) - len(kept)
    if not missing:
        return kept, None
    return kept, (
        f"only {len(kept)} of the {len(references.captions)} images of {references.name} have a "
        "prediction; the scores are over these alone"
    )
