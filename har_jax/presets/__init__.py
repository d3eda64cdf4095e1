"""Configurations that come with the package: `--config=scst:tiny`.

tiny    the embedded scenes, minutes on a laptop
coco    ViT-L/14 and Mistral-7B
"""

from __future__ import annotations

from collections.abc import Mapping

from har_jax.config import Config
from har_jax.errors import UserError, did_you_mean

FAMILIES = ("mle", "scst")


def pick(presets: Mapping[str, Config], name: str, family: str) -> Config:
    """A preset by name; an unknown one is an error that lists those there are.

    Raises:
      UserError: there is no such preset.
    """
    if name not in presets:
        raise UserError(
            f"{name!r} is no such preset{did_you_mean(name, presets)}; {family} has "
            f"{', '.join(presets)}"
        )
    return presets[name]
