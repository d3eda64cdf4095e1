"""`prepare flickr`: Flickr8k and Flickr30k."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_photographs, add_shares, write_photographs


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "flickr",
        help="Flickr8k or Flickr30k: Karpathy's JSON, or a token file, and the images",
        description=(
            "Read Karpathy's dataset_flickr8k.json or dataset_flickr30k.json (with their splits), "
            "or a token file (Flickr8k.token.txt, results_20130124.token), which names no splits: "
            "--val and --test draw them. Broken off, the same command continues."
        ),
    )
    add_photographs(parser)
    parser.add_argument("--captions", required=True, metavar="FILE", help="captions file")
    add_shares(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import flickr
    from har_jax.data.readers.shares import Shares

    shares = Shares(arguments.val, arguments.test)
    write_photographs(
        arguments,
        lambda problems: flickr.read_file(arguments.captions, shares=shares, problems=problems),
        name="flickr",
        description="Photographs of Flickr with captions.",
        settings={"captions": arguments.captions, "val": shares.val, "test": shares.test},
    )
