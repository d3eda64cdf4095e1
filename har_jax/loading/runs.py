"""What a run directory says of itself."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from har_jax.config import Config
from har_jax.errors import UserError


def read_run(run: str | os.PathLike[str]) -> tuple[Config, dict[str, Any]]:
    """`config.json` and `run.json` of a run directory.

    Raises:
      UserError: there is no such directory, or it is no run.
    """
    path = pathlib.Path(run)
    if not path.is_dir():
        raise UserError(
            f"there is no run directory {str(run)!r}; give the --workdir of a run of har_jax.train"
        )
    values = []
    for name in ("config.json", "run.json"):
        try:
            values.append(json.loads((path / name).read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{str(run)!r} is not a run of har_jax.train: it has no {name}; give the --workdir "
                "of one"
            ) from None
        except ValueError as error:
            raise UserError(f"{path / name} is not valid JSON: {error}") from None
    return Config.from_dict(values[0]), values[1]
