"""The files of image folders, by the names that captions files give them.

Nothing outside of the folders is found: a name may be absolute or have `..` in it, but the file has
to lie below a folder by its name. A symbolic link in a folder is followed, whoever put it there
being who made the folder.
"""

from __future__ import annotations

import functools
import os
import pathlib
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence

_MOST = 1_000_000  # files that are looked at to find what was meant


class ImageFiles:
    """Files below some folders, which are searched in this order."""

    def __init__(self, roots: Sequence[str | os.PathLike[str]]):
        self.roots = [os.fspath(root) for root in roots]

    def find(self, names: Sequence[str]) -> pathlib.Path | None:
        """The first file of one of these names; None where there is none."""
        for root in self.roots:
            for name in names:
                path = _below(root, name)
                if path is not None and os.path.isfile(path):  # never raises
                    return pathlib.Path(path)
        return None

    def are_outside(self, names: Sequence[str]) -> bool:
        """Whether all these names lead out of all folders."""
        return all(_below(root, name) is None for root in self.roots for name in names)

    def relative(self, name: str) -> str:
        """An absolute name of a file below a folder as the folder has it; others as they are."""
        for root in self.roots:
            path = _below(root, name) if os.path.isabs(name) else None
            if path is not None:
                return os.path.relpath(path, os.path.normpath(root))
        return name

    def walk(self) -> Iterator[str]:
        """Names of all files, relative to their folder."""
        for root in self.roots:
            for place, folders, files in os.walk(root):
                folders.sort()
                for name in sorted(files):
                    yield os.path.normpath(os.path.relpath(os.path.join(place, name), root))

    def near(self, name: str) -> str:
        """A suffix such as `" (did you mean 'img/a.jpg'?)"` for a file that is not there, one whose
        name differs in case, suffix, slashes, folder or the form of its accents; or ""."""
        for root in self.roots:
            path = _below(root, name)
            if path is not None and os.path.lexists(path):
                link = os.path.islink(path) and not os.path.exists(path)
                return " (a link to nothing: is its content here?)" if link else " (not a file)"
        found = self._by_stem.get(_stem(name))
        return f" (did you mean {found!r}?)" if found else ""

    @functools.cached_property
    def _by_stem(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for _, name in zip(range(_MOST), self.walk(), strict=False):
            found.setdefault(_stem(name), name)
        return found


def _below(root: str, name: str) -> str | None:
    """The path of a name in a folder, without `..`; None if it leads out of the folder."""
    path = os.path.normpath(os.path.join(root, name))
    if _is_below(os.path.abspath(root), os.path.abspath(path)):
        return path
    if os.path.isabs(name):  # the folder may be named through a link, the file through none
        whole = os.path.realpath(root)
        if _is_below(whole, path):
            return os.path.normpath(os.path.join(root, os.path.relpath(path, whole)))
    return None


def _is_below(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _stem(name: str) -> str:
    """What near names have in common."""
    last = posixpath.basename(name.replace("\\", "/").rstrip("/"))
    return unicodedata.normalize("NFC", posixpath.splitext(last)[0]).casefold()
