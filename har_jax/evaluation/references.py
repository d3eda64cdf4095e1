"""References and predictions from the files that other tools write.

References come as COCO captions JSON or as Karpathy's `dataset_coco.json` (`data.readers.coco`);
predictions as COCO results.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from har_jax.data.readers import coco
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import read_json
from har_jax.metrics.corpus import predictions_from_results

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
      UserError: not JSON, neither of the formats, an unknown split, or a caption that is no text.
    """
    entries, _ = coco.read_file(path, None, "keep", "", None)
    name = os.path.basename(os.fspath(path))
    present = {entry.split for entry in entries} - {""}  # COCO's files name none
    if present:
        wanted = {"train", "restval"} if split == "train" else {split}
        if not wanted & present:
            raise UserError(
                f"--split={split}: {str(path)!r} has no such split{did_you_mean(split, present)}; "
                f"it has {', '.join(sorted(present))}"
            )
        entries = [entry for entry in entries if entry.split in wanted]
        name = f"{name}:{split}"
    captions: dict[int, list[str]] = {}
    for entry in entries:
        for _, text in entry.captions:
            if not isinstance(text, str):
                what = f"image {entry.image_id} has the caption {text!r}, which is no str"
                raise UserError(f"{str(path)!r}: {what}")
            captions.setdefault(entry.image_id, []).append(text)
    if not captions:
        raise UserError(f"{str(path)!r} holds no captions; give {coco.FORMATS}")
    return References(
        captions,
        {entry.image_id: entry.names[-1] for entry in entries if entry.names},
        name,
        {entry.image_id: entry.domain for entry in entries if entry.domain},
    )


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
