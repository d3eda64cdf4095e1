"""`prepare folder`: a directory of images with captions in CSV or JSON lines."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_photographs, add_shares, write_photographs


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "folder",
        help="your own data: a folder of images, captions in CSV or JSONL",
        description=(
            "Read captions from CSV (a header such as image,caption; one row per caption) or JSON "
            'lines ({"image": ..., "captions": [...]}), and the images they name, relative to '
            "--images. Without --captions, metadata.csv or metadata.jsonl in the folder is read, "
            "as Hugging Face's imagefolder has it. The split is a column `split`, or the first "
            "folder of the name (train/, val/, test/), or drawn by --val and --test; else all is "
            "train. Broken off, the same command continues."
        ),
    )
    add_photographs(parser, several=False)
    parser.add_argument(
        "--captions",
        action="append",
        default=[],
        metavar="FILE",
        help="CSV or JSONL file; repeatable",
    )
    for what in ("image", "caption"):
        parser.add_argument(
            f"--{what}-column", default="", metavar="NAME", help=f"of the {what}, if it is unusual"
        )
    parser.add_argument("--split", metavar="NAME", help="the one split that all images make")
    add_shares(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import folder
    from har_jax.data.readers.shares import Shares
    from har_jax.errors import UserError

    if len(arguments.images) > 1:
        raise UserError(
            f"prepare folder takes one --images, got {len(arguments.images)}; give the folder "
            "above them, and in the captions file each image's path below it"
        )
    shares = Shares(arguments.val, arguments.test)
    columns = folder.Columns(arguments.image_column, arguments.caption_column)
    write_photographs(
        arguments,
        lambda problems: folder.read_folder(
            arguments.images[0],
            arguments.captions,
            shares=shares,
            columns=columns,
            split=arguments.split,
            problems=problems,
        ),
        name="folder",
        description="A folder of images with captions.",
        settings={"captions": arguments.captions, "val": shares.val, "test": shares.test},
    )
