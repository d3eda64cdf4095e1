"""What readers of plain files share: splits drawn by a hash of the name."""

from __future__ import annotations

import dataclasses

from har_jax.data.dataset import PathLike
from har_jax.errors import UserError
from har_jax.ids import hashed


@dataclasses.dataclass(frozen=True)
class Shares:
    """How images are divided where nothing says so: by a hash of their name.

    An image stays in its split whatever is added beside it; sizes are therefore near the shares.

    Attributes:
      val, test: expected shares of the images, in [0, 1); the rest is "train".
    """

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise UserError(
                f"--val={self.val} --test={self.test}: both must be at least 0, and together below "
                "1, so that something is left to train on"
            )

    @property
    def given(self) -> bool:
        return self.val > 0 or self.test > 0

    def split_of(self, name: str) -> str:
        """The split of the image of this name."""
        place = hashed("split", name, 53) / 2**53
        if place < self.test:
            return "test"
        return "val" if place < self.test + self.val else "train"


def check_whole(path: PathLike, text: str) -> tuple[str, ...]:
    """A note if a file of lines ends within one: its last caption may be cut."""
    if text and not text.endswith(("\n", "\r")):
        return (f"{path} does not end in a line break: is it whole?",)
    return ()
