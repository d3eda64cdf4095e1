"""What the subcommands of `prepare` share: how they are declared, and their closing report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from har_jax.command_line import WORDS, path

Run = Callable[[argparse.Namespace], int | None]


def subcommand(commands: Any, name: str, run: Run, **texts: Any) -> argparse.ArgumentParser:
    """Declares a subcommand that runs `run` and writes to --out."""
    parser = commands.add_parser(name, **texts)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--out", type=path, required=True, metavar="DIR", help="where the result is written")
    add("--overwrite", action="store_true", help="replace a dataset that is there")
    return parser


def add_words(parser: argparse.ArgumentParser) -> None:
    """Declares --words."""
    counted = f"what rewards and metrics count of a caption: {WORDS} (default: ptb, for English)"
    parser.add_argument("--words", default="ptb", metavar="NAME", help=counted)


def print_report(out: str | os.PathLike, card: dict[str, Any], dropped: Sequence[str] = ()) -> None:
    """What was written, and what was not, on stdout."""
    from har_jax.data import tally

    lines = [f"{card['name']} -> {out}", *tally.report(card)]
    print("\n".join([*lines, *(f"  dropped {line}" for line in dropped)]))
