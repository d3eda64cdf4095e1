"""A figure that only the scenes have, because it is known what was drawn: whether captions name
shapes that are there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from har_jax.errors import UserError

_MODULE = "har_jax.miniature.truth"


def shapes_named(data: str, captions: Mapping[int, str], split: str) -> dict[str, Any] | None:
    """What `har_jax.miniature.truth.shapes_named` says of captions; None without that module, and
    of a dataset of other images."""
    if importlib.util.find_spec(_MODULE) is None:
        return None
    try:
        found = importlib.import_module(_MODULE).shapes_named(data, captions, split=split)
    except UserError:
        return None
    return found.to_dict()
