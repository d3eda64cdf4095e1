"""`prepare coco`: COCO captions JSON, or Karpathy's dataset_coco.json."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_photographs, write_photographs


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "coco",
        help="COCO captions: annotation files and image folders",
        description=(
            "Read COCO captions JSON (one split per file) or Karpathy's dataset_coco.json (all "
            "splits in one), and the images they name. Images keep their bytes; those that do not "
            "decode are dropped and reported. Broken off, the same command continues."
        ),
    )
    add_photographs(parser)
    parser.add_argument(
        "--captions",
        action="append",
        required=True,
        metavar="FILE",
        help="annotation file; repeat it for several splits",
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="split that a COCO file makes: one --split per --captions, in the same order "
        "(default for a single file: train)",
    )
    parser.add_argument(
        "--restval",
        choices=("train", "keep", "drop"),
        default="train",
        help="Karpathy's restval images: into train (the usual practice), kept as a split of their "
        "own, or left out (default: train)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import coco

    write_photographs(
        arguments,
        lambda problems: coco.read_files(
            arguments.captions,
            splits=arguments.split,
            restval=arguments.restval,
            problems=problems,
        ),
        name="coco",
        description="Images and captions in COCO's format.",
        settings={"captions": arguments.captions, "restval": arguments.restval},
    )
