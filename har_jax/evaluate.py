"""Scores a captioner, or captions that some other tool wrote: `python -m har_jax.evaluate`."""

from __future__ import annotations

import argparse
import gc
import pathlib
from collections.abc import Sequence
from typing import Any

from har_jax.command_line import (
    add_captioner,
    add_decoding,
    add_metrics,
    add_scored,
    captioner_of,
    decoding,
    metrics_of,
    new_parser,
    path,
)
from har_jax.errors import UserError, command
from har_jax.reports.tables import scores_table
from har_jax.settings import Count, word

DESCRIPTION = """\
Scores captions against references: those of a trained run, on a split, or those of a file.

Writes predictions.json (COCO results), scores.json and per_image.json. Values are as the official
tools print them (CIDEr 1.2, not 120), with 95 % bootstrap intervals; of a metric that cannot run
here `skipped` says why. --against compares with another system by a paired bootstrap.
"""

EXAMPLES = """\
examples:
  python -m har_jax.evaluate --checkpoint=runs/scst --out=runs/scst/eval/test
  python -m har_jax.evaluate --checkpoint=runs/scst --split=val --method=beam --beams=5 --out=out
  python -m har_jax.evaluate --checkpoint=runs/scst --against=runs/mle/eval/test --out=out
  python -m har_jax.evaluate --predictions=results.json --references=dataset_coco.json \\
      --split=test --images=coco/ --clip=models/clip-vit-base-patch32 --out=out
  python -m har_jax.evaluate --predictions=r.json --references=c.json --metrics=official --out=out
  python -m har_jax.evaluate --predictions=captions.csv --references=data/mine:test --out=out
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("evaluate", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--out", type=path, metavar="DIR", required=True, help="where the results go")
    add("--clip", type=path, metavar="HF_DIR", help="CLIP of CLIPScore (default: the run's choice)")
    pac = "CLIP of PAC-S's weights, for PAC-S and RefPAC-S (docs/metrics.md)"
    add("--pac", type=path, metavar="HF_DIR", help=pac)
    add("--instances", type=path, metavar="FILE", help="COCO instances JSON, for CHAIR")
    add("--control", choices=["shuffle"], help="also score captions of other images: does it look?")
    add_scored(parser, "sampling, control and bootstrap")
    add_metrics(parser)
    run = parser.add_argument_group("a captioner")
    add_captioner(run)
    add_decoding(run)
    add = run.add_argument
    add("--data", type=path, metavar="DIR", help="prepared dataset (default: a run's own)")
    cache = "feature cache (default: the run's own, where it holds the split), or none"
    add("--features", type=path, metavar="DIR", help=cache)
    add("--allow-overlap", action="store_true", help="score training images too, with a warning")
    add("--batch-size", type=word(Count), metavar="N", help="images per device call")
    add = parser.add_argument_group("captions that are there already").add_argument
    given = "COCO results, what caption --out wrote, CSV, or {image: caption}"
    add("--predictions", type=path, metavar="FILE", help=given)
    truth = "COCO's or Karpathy's JSON, CSV, {image: [captions]}, or a dataset: DIR or DIR:SPLIT"
    add("--references", type=path, metavar="FILE", help=truth)
    add("--images", type=path, metavar="DIR", help="the image files, for CLIPScore and PAC-S")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if bool(args.checkpoint or args.projector) == bool(args.predictions):
        other = "--predictions=FILE with --references=FILE, to score captions that are there"
        raise UserError(f"give either --checkpoint=RUN, to caption and score, or {other}")
    print(scores_table(score_files(args) if args.predictions else score_captioner(args)))
    print(f"written to {pathlib.Path(args.out) / 'scores.json'}")
    return 0


def score_captioner(args: argparse.Namespace) -> dict[str, Any]:
    for flag in ("references", "images"):
        if getattr(args, flag):
            raise UserError(f"--{flag} goes with --predictions; a run has its own (see --data)")
    settings = chosen(args, "step", "data", "batch_size", "features", "allow_overlap")
    source, given = captioner_of(args)
    settings |= {"given": {k: v for k, v in given.items() if k != "step"}, **metrics_of(args)}
    from har_jax.evaluation.run import evaluate_run
    from har_jax.hardware import keep_memory

    keep_memory()
    return evaluate_run(source, args.out, **settings, **decoding(args)).scores


def score_files(args: argparse.Namespace) -> dict[str, Any]:
    if not args.references:
        raise UserError("--predictions needs --references=FILE, the captions to compare with")
    gc.disable()  # there is nothing to collect, and looking takes a seventh of the time
    from har_jax.evaluation.from_files import evaluate_files

    settings = chosen(args, "images", "seed") | metrics_of(args)
    try:
        return evaluate_files(args.predictions, args.references, args.out, **settings).scores
    finally:
        gc.enable()


def chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    shared = ("split", "clip", "pac", "instances", "control", "against", "limit", "words")
    return {name: getattr(args, name) for name in (*shared, *names)}


if __name__ == "__main__":
    raise SystemExit(main())
