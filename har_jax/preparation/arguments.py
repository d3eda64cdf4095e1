"""Arguments that subcommands of `prepare` share, and their closing report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from har_jax.data.entries import Problems, Reading


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where the result is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def add_photographs(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """--images, --captions, and the options of `data.photographs`."""
    add_out(parser)
    searched = "folder of images; repeat it to search several, for any of the captions files"
    parser.add_argument(
        "--images",
        action="append",
        required=True,
        metavar="DIR",
        help=searched if several else "folder of images",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop, with a list, instead of dropping anything"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="DATASET[:SPLIT]",
        help="leave out images that are in this prepared dataset, by id (where both have ids of "
        "one kind) and by content",
    )
    parser.add_argument(
        "--duplicates",
        choices=("refuse", "drop"),
        default="refuse",
        help="of the same file under two ids in two splits: stop, or leave out the one that is "
        "trained on (default: refuse)",
    )
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="HF_DIR",
        help="also report the lengths of captions in its tokens",
    )


def add_shares(parser: argparse.ArgumentParser) -> None:
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}",
            type=float,
            default=0.0,
            metavar="SHARE",
            help=f"share of the images drawn into {split}, such as 0.05, by a hash of their names "
            "(default: 0)",
        )


def write_photographs(
    arguments: argparse.Namespace,
    read: Callable[[Problems], Reading],
    *,
    name: str,
    description: str,
    settings: dict[str, Any],
) -> None:
    """Prepares what `read` finds, and prints the report."""
    from har_jax.data import photographs

    card, dropped = photographs.prepare(
        arguments.out,
        read,
        arguments.images,
        name=name,
        description=description,
        settings={"images": arguments.images, "exclude": arguments.exclude, **settings},
        options=photographs.Options(
            strict=arguments.strict,
            exclude=tuple(arguments.exclude),
            duplicates=arguments.duplicates,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.overwrite,
        ),
    )
    print_report(arguments.out, card, dropped)


def print_report(out: str | os.PathLike, card: dict[str, Any], dropped: Sequence[str] = ()) -> None:
    """What was written, and what was not, on stdout."""
    from har_jax.data import tally

    print(f"{card['name']} -> {out}")
    for line in tally.report(card):
        print(line)
    for line in dropped:
        print(f"  dropped {line}")
