"""`prepare verify`: whether a dataset or a feature cache is as it was written, to the last byte."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from har_jax.command_line import path
from har_jax.errors import UserError
from har_jax.foreign import shortened


def add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="read all of a dataset or a feature cache: is it as it was written?",
        description="Read every byte of a dataset or a feature cache, and say what is damaged.",
    )
    parser.set_defaults(run=verify)
    what = "of a dataset, or of a feature cache"
    parser.add_argument("directory", type=path, metavar="DIR", help=what)


def verify(arguments: argparse.Namespace) -> int:
    """
    Raises:
      UserError: something is damaged, or there is nothing that could be verified.
    """
    from har_jax.data.description import INFO, read_description
    from har_jax.data.features.cache import MANIFEST, FeatureCache
    from har_jax.data.verify import problems

    directory = pathlib.Path(arguments.directory)
    if (directory / MANIFEST).is_file():
        cache = FeatureCache(directory)
        found = [f"{name} is not as it was written" for name in cache.verify()]
        what = f"{len(cache.files)} files are as they were written"
    elif (directory / INFO).is_file():
        found = problems(directory)
        sizes = read_description(directory).sizes
        what = ", ".join(f"{name}: {n:,} images" for name, n in sizes.items()) + "; all are whole"
    else:
        raise UserError(
            f"{directory} holds no dataset ({INFO}) and no feature cache ({MANIFEST}); give the "
            "directory of one"
        )
    if found:
        more = f" | and {len(found) - 3} more" if len(found) > 3 else ""
        some = " | ".join(shortened(line, 240) for line in found[:3]) + more
        count = f"{len(found)} thing{'s are' if len(found) > 1 else ' is'} damaged"
        raise UserError(f"{directory}: {count}: {some}")
    print(f"{directory}: {what}")
    return 0
