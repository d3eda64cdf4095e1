"""Images as a command line names them: folders, patterns and files, each image once, by its name.

What an image is called is what other files call it too: below a single folder its path from there
(`train/a.jpg`, as `prepare folder` has it), else the path as it was given. Of thousands of images
nothing is kept but their names.
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from har_jax.data.decode import read
from har_jax.data.image_files import ImageFiles
from har_jax.data.readers.folder import SUFFIXES
from har_jax.errors import UserError
from har_jax.foreign import shortened
from har_jax.ids import Id, number_in


class ImageList:
    """Images by name; `data.protocols.Images` but for the ids, which may be names.

    Attributes:
      names: of the images, each once, in the order in which they were given.
      ids: for each image the number that its file's name consists of, as COCO's do, where no other
        image has the same; else its name.
    """

    def __init__(self, names: Sequence[str], folder: str = ""):
        """
        Args:
          folder: that the names start from; "": where the process is.

        Raises:
          UserError: two names that differ in the form of a letter alone, which are one id.
        """
        self.names, self._folder = list(dict.fromkeys(names)), folder
        alike = Counter(unicodedata.normalize("NFC", name) for name in self.names)
        if len(alike) < len(self.names):
            twice = shortened(repr(alike.most_common(1)[0][0]))
            raise UserError(
                f"two files are called {twice}, one with its accents as letters of their own "
                "(Unicode's NFD); what is written of them could not be told apart: rename one"
            )
        numbers = [number_in(name) for name in self.names]
        count = Counter(numbers)
        self.ids: list[Id] = [
            name if number is None or count[number] > 1 else number
            for name, number in zip(self.names, numbers, strict=True)
        ]

    @classmethod
    def of(cls, given: Sequence[str]) -> ImageList:
        """Of folders, with all that is below them; of patterns such as `photos/**/*.jpg`; and of
        files.

        Raises:
          UserError: a folder or a pattern without images.
        """
        if len(given) == 1 and os.path.isdir(given[0]):
            return cls(_below(given[0]), given[0])
        return cls(paths_of(given))

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """Where image `i` is."""
        return os.path.join(self._folder, self.names[i])

    def read(self, i: int) -> bytes:
        """The encoded bytes of image `i`; UserError where they cannot be read."""
        return read(self.path(i))

    def name_of(self, i: int) -> str:
        """What errors call an image."""
        return self.path(i)


def paths_of(given: Sequence[str]) -> list[str]:
    """The files that `given` names, as often as it does; see `ImageList.of`."""
    return [name for one in given for name in _named(one)]


def _named(given: str) -> Iterator[str]:
    if os.path.isdir(given):
        yield from (os.path.join(given, name) for name in _below(given))
    elif os.path.lexists(given):
        yield given  # whatever is wrong with it is told when it is read
    elif not glob.has_magic(given):
        raise UserError(
            f"there is no file {shortened(repr(given))}; give image files, a folder of them, or a "
            "pattern such as 'photos/**/*.jpg'"
        )
    else:
        found = [name for name in sorted(glob.glob(given, recursive=True)) if _is_image(name)]
        if not found:
            raise UserError(
                f"no image file matches {shortened(repr(given))}; give image files, a folder of "
                f"them, or a pattern such as 'photos/**/*.jpg' ({', '.join(SUFFIXES)})"
            )
        yield from found


def _below(folder: str) -> list[str]:
    found = [name for name in ImageFiles([folder]).walk() if name.lower().endswith(SUFFIXES)]
    if not found:
        raise UserError(
            f"{shortened(folder, 200)} holds no image files ({', '.join(SUFFIXES)}); give a folder "
            "that does, or the files themselves"
        )
    return found


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and not os.path.isdir(path)
