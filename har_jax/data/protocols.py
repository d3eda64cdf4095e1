"""What can be captioned, and what captions: `evaluate` and `caption` ask for no more than these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Images(Protocol):
    """Images by number: a split of a dataset, files of a folder, frames."""

    @property
    def ids(self) -> Sequence[int]:
        """The id of each image, in order."""
        ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The encoded bytes (JPEG, PNG, …) of image `i`, counted from 0."""
        ...


class Part:
    """Some images in a row of others, as `Images`."""

    def __init__(self, images: Images, start: int, stop: int):
        self._images, self._start = images, start
        self.ids = images.ids[start:stop]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> bytes:
        return self._images.read(self._start + i)


class Written(NamedTuple):
    """A caption, and whether it came to its end or was cut at a length limit (None: not known)."""

    text: str
    ended: bool | None = None


@runtime_checkable
class Writer(Protocol):
    """Whatever turns images into texts."""

    def write(self, images: Images) -> Iterator[Written]:
        """A caption of each image, in the order of the images."""
        ...
