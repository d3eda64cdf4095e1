"""Reads all of a dataset, and says what is not as it was written."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator

from har_jax.data import description
from har_jax.data.dataset import PathLike, Split, open_split
from har_jax.errors import UserError
from har_jax.progress import track


def problems(directory: PathLike) -> list[str]:
    """A line for each file and each record that is damaged, [] if all is well.

    Raises:
      UserError: there is no dataset, or not even its description can be read.
    """
    directory = pathlib.Path(directory)
    found = description.read_description(directory)
    lines = []
    for name in found.files:
        try:
            description.check(directory / name, found.files, sums=True)
        except UserError as error:
            lines.append(str(error))
    if lines:  # what follows would tell of them again
        return lines
    for name, size in found.sizes.items():
        try:
            split = open_split(directory, name)
            lines += track(_of(split), total=size, desc=f"reading {name}", unit="images")
        except UserError as error:
            lines.append(str(error))
    return [line for line in lines if line]


def _of(split: Split) -> Iterator[str]:
    """What is wrong with each example, "" for nothing."""
    listing = split.listing
    for i in range(len(split)):
        try:
            example = split[i]
        except UserError as error:
            yield str(error)
            continue
        listed = listing.ids[i], listing.filenames[i], listing.captions[i]
        same = listed == (example.image_id, example.filename, example.captions)
        if listing.contents is not None:
            same = same and hashlib.sha256(example.image).hexdigest() == listing.contents[i]
        yield "" if same else f"{split.name_of(i)}: its record is not what is listed of it"
