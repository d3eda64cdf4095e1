"""nocaps' captions to entries (Agrawal et al., arXiv 1812.08658).

The file (nocaps_val_4500_captions.json) is in COCO's format, each image with the `domain` that it
belongs to: its objects are all of COCO's classes, some of them, or none.
"""

from __future__ import annotations

import collections

from har_jax.data.dataset import PathLike
from har_jax.data.entries import Problems, Reading
from har_jax.data.readers import coco
from har_jax.errors import UserError

DOMAINS = ("in-domain", "near-domain", "out-domain")


def read_file(path: PathLike, *, split: str = "val", problems: Problems) -> Reading:
    """The images of nocaps' validation set, with their domains.

    Raises:
      UserError: see `coco.read_files`; or an image of no domain.
    """
    reading = coco.read_files([path], splits=[split], problems=problems)
    unknown = [entry for entry in reading.entries if entry.domain not in DOMAINS]
    if unknown:
        seen = collections.Counter(entry.domain or "none" for entry in unknown)
        raise UserError(
            f"{path} is not nocaps' captions file: {len(unknown)} of {len(reading.entries)} images "
            f"have no domain of {', '.join(DOMAINS)} (such as image {unknown[0].image_id}: "
            f"{next(iter(seen))}); for other files in COCO's format use `prepare coco`"
        )
    return Reading(reading.entries, "nocaps")
