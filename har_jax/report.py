"""Writes the page of a run, or of several beside each other: `python -m har_jax.report RUN`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from har_jax.command_line import new_parser, path
from har_jax.errors import UserError, command
from har_jax.settings import Count, word

DESCRIPTION = """\
Writes one HTML file that needs no other: scores with intervals, images with their captions, curves,
captions while it learned, settings. Whatever a run holds so far is shown: it may be at work, of
either stage, and not evaluated.

With --against, the runs stand beside each other: curves over each other, scores with intervals,
captions of the same images, and the settings that differ.
"""

EXAMPLES = """\
examples:
  python -m har_jax.report runs/scst
  python -m har_jax.report runs/scst --against runs/mle runs/scst-lr3e-4 --out=comparison.html
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("report", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("run", type=path, metavar="RUN", help="run directory of train")
    others = "other runs, to compare RUN with"
    several: dict[str, Any] = dict(nargs="+", action="extend", default=[])
    add("--against", type=path, metavar="RUN", **several, help=others)
    place = "the page (default: RUN/report.html, with --against RUN/comparison.html)"
    add("--out", type=path, metavar="FILE", help=place)
    images = "images of each group (default: 24)"
    add("--images", type=word(Count), default=24, metavar="N", help=images)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.out and os.path.isdir(args.out):
        raise UserError(f"--out={args.out} is a directory; give a file, such as page.html")
    if args.against:
        from har_jax.reports.comparison import write_comparison

        page = write_comparison(args.run, args.against, out=args.out, n_images=args.images)
    else:
        from har_jax.reports.page import write_report

        page = write_report(args.run, out=args.out, n_images=args.images)
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
