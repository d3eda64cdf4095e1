"""References and predictions from the files that other tools write.

References come as COCO captions JSON or as Karpathy's `dataset_coco.json` (`data.readers.coco`);
predictions as COCO results. Nothing is dropped from either: what a file says of an image cannot be
read, so the file is refused.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import reprlib
from collections.abc import Iterable, Mapping

from har_jax import ids
from har_jax.data.dataset import Split, captions_path
from har_jax.data.readers import coco
from har_jax.data.readers.rows import json_values
from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import is_unicode, parse_json, read_text, shortened
from har_jax.ids import Id
from har_jax.metrics.corpus import predictions_from_results

RESULTS = 'COCO results: a list of {"image_id": ..., "caption": ...}'


@dataclasses.dataclass(frozen=True)
class References:
    """Captions by the number of the image (`ids.numbered`), and the images' file names and
    (nocaps') domains where it has them.

    Attributes:
      numbers: the number of an image by each id that predictions may have of it: the one that it
        has in the file, the one that it had before `prepare`, and its file's name, also without
        suffix.
    """

    captions: dict[int, list[str]]
    filenames: dict[int, str]
    name: str
    domains: dict[int, str] = dataclasses.field(default_factory=dict)
    numbers: dict[Id, int] = dataclasses.field(default_factory=dict)


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
            known = shortened(", ".join(sorted(present)), 200)
            raise UserError(
                f"--split={split:.60}: {str(path)!r} has no such split"
                f"{did_you_mean(split[:60], present)}; it has {known}"
            )
        entries = [entry for entry in entries if entry.split in wanted]
        name = f"{name}:{split}"
    numbers = ids.numbered(entry.written for entry in entries)
    captions: dict[int, list[str]] = {}
    for entry in entries:
        for _, text in entry.captions:
            if not isinstance(text, str) or not is_unicode(text):
                what = f"{entry} has the caption {reprlib.repr(text)}, which is no text"
                raise UserError(f"{str(path)!r}: {what}")
            captions.setdefault(numbers[entry.written], []).append(text)
    if not captions:
        raise UserError(f"{str(path)!r} holds no captions; give {coco.FORMATS}")
    names = [(name, e) for e in entries for name in {e.filename, pathlib.Path(e.filename).stem}]
    named = collections.Counter(name for name, _ in names)
    once = {name: numbers[entry.written] for name, entry in names if named[name] == 1}
    before = {e.source: numbers[e.written] for e in entries if e.source is not None}
    return References(
        captions,
        {numbers[entry.written]: entry.names[-1] for entry in entries if entry.names},
        name,
        {numbers[entry.written]: entry.domain for entry in entries if entry.domain},
        {**once, **before, **numbers},
    )


def numbers_of(split: Split) -> dict[Id, int]:
    """`References.numbers` of a dataset's split; {} where it keeps no captions by themselves."""
    path = captions_path(split.directory, split.name)
    return read_references(path).numbers if path.is_file() else {}


def read_predictions(path: str | os.PathLike[str]) -> dict[Id, str]:
    """Reads COCO results, as one list or as JSON lines.

    Raises:
      UserError: not JSON, not such a list, empty, an entry without its keys, an image twice.
    """
    text = read_text(path, RESULTS)
    where = repr(str(path))
    found = [value for _, value in json_values(where, text, RESULTS, halves=False)]
    if broken := next((value for value in found if isinstance(value, UserError)), None):
        if text.lstrip().startswith("{"):  # one object over many lines, perhaps
            with contextlib.suppress(UserError):
                found = [parse_json(text, where, RESULTS)]
        if broken in found:
            raise broken
    if not found:
        raise UserError(f"{where} holds no predictions; give {RESULTS}")
    if len(found) == 1 and not text.lstrip().startswith("["):
        only = found[0]
        if not isinstance(only, dict) or not {"image_id", "caption"} <= set(only):
            raise UserError(f"{where} holds a {type(only).__name__}, not a list; give {RESULTS}")
    try:
        return predictions_from_results(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def by_number(references: References, written: Iterable[Id]) -> dict[int, Id]:
    """{number of an image: its id as predictions have it}, in their order.

    Raises:
      UserError: an image that has no references, or one under two ids.
    """
    found: dict[int, Id] = {}
    unknown: list[Id] = []
    count = 0
    for image in written:
        count += 1
        number = references.numbers.get(image)
        if number is None or number not in references.captions:
            unknown.append(image)
        elif (other := found.setdefault(number, image)) != image:
            raise UserError(
                f"{shortened(ascii(other), 60)} and {shortened(ascii(image), 60)} are one image of "
                f"{references.name}; the metrics take one caption per image"
            )
    if unknown:
        raise UserError(
            f"{len(unknown)} of {count} predictions are for images that {references.name} has no "
            f"references of, such as image {shortened(ascii(unknown[0]), 60)}; give the references "
            "(and --split) that belong to the predictions"
        )
    return found


def restrict(
    references: References, predicted: Mapping[int, object]
) -> tuple[dict[int, list[str]], str | None]:
    """The references of the predicted images, as pycocoevalcap takes them, and a warning if some
    images have none predicted (a CIDEr over fewer images has other document frequencies)."""
    kept = {i: texts for i, texts in references.captions.items() if i in predicted}
    missing = len(references.captions) - len(kept)
    if not missing:
        return kept, None
    return kept, (
        f"only {len(kept)} of the {len(references.captions)} images of {references.name} have a "
        "prediction; the scores are over these alone"
    )
