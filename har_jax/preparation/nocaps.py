"""`prepare nocaps`: the validation set, with its domains."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_photographs, write_photographs


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "nocaps",
        help="nocaps (validation set), with its in-, near- and out-domain",
        description=(
            "Read nocaps_val_4500_captions.json and its images. The domain of each image is kept: "
            "evaluate then scores each domain besides the whole. Broken off, the same command "
            "continues."
        ),
    )
    add_photographs(parser)
    parser.add_argument("--captions", required=True, metavar="FILE", help="captions file")
    parser.add_argument("--split", default="val", metavar="NAME", help="its name (default: val)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import nocaps

    write_photographs(
        arguments,
        lambda problems: nocaps.read_file(
            arguments.captions, split=arguments.split, problems=problems
        ),
        name="nocaps",
        description="nocaps: images of objects that COCO's captions do not mention.",
        settings={"captions": arguments.captions},
    )
