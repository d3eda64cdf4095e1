"""Scores a captioner, or captions that some other tool wrote: `python -m har_jax.evaluate`."""

from __future__ import annotations

import argparse
import gc
import pathlib
from collections.abc import Sequence
from typing import Any

from har_jax.errors import UserError, command

DESCRIPTION = """\
Captions a split of a dataset with a trained run and scores the captions against the references, or
scores captions that are there already.

Writes DIR/predictions.json (COCO results), DIR/scores.json and DIR/per_image.json. Values are as
the official tools print them (CIDEr 1.2, not 120), with 95 % bootstrap intervals. A metric that
cannot run here is null in scores.json, and `skipped` says why. --against compares with another
system over the same images: difference, interval and p-value of a paired bootstrap.
"""

EXAMPLES = """\
examples:
  python -m har_jax.evaluate --checkpoint=runs/scst --out=runs/scst/eval/test
  python -m har_jax.evaluate --checkpoint=runs/scst --split=val --method=beam --beams=5 --out=out
  python -m har_jax.evaluate --checkpoint=runs/mle --control=shuffle --limit=200 --out=out
  python -m har_jax.evaluate --predictions=results.json --references=captions_val2014.json \\
      --out=out
  python -m har_jax.evaluate --predictions=results.json --references=dataset_coco.json \\
      --split=test --images=coco/ --clip=models/clip-vit-base-patch32 --out=out
  python -m har_jax.evaluate --predictions=results.json --references=captions_val2014.json \\
      --metrics=official --out=out
  python -m har_jax.evaluate --checkpoint=runs/scst --against=runs/mle/eval/test --out=out
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m har_jax.evaluate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="where the results go")
    parser.add_argument("--split", default="test", help="of the dataset (default: test)")
    parser.add_argument(
        "--clip",
        metavar="HF_DIR",
        help="CLIP that scores CLIPScore (default: the run's own choice)",
    )
    parser.add_argument(
        "--control", choices=["shuffle"], help="also score captions of other images: does it look?"
    )
    parser.add_argument(
        "--against", metavar="OTHER", help="another system: COCO results JSON, or its --out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling, control and bootstrap")
    run = parser.add_argument_group("a trained run")
    run.add_argument("--checkpoint", metavar="RUN", help="run directory of har_jax.train")
    run.add_argument("--step", default="best", help="best (default), latest, or a number")
    run.add_argument("--method", choices=["greedy", "sample", "beam"], default="greedy")
    run.add_argument("--beams", type=int, default=5, help="of --method=beam (default: 5)")
    run.add_argument("--temperature", type=float, default=1.0, help="of --method=sample")
    run.add_argument("--data", metavar="DIR", help="prepared dataset (default: the run's own)")
    run.add_argument(
        "--features",
        metavar="DIR",
        help="feature cache (default: the run's own, where it holds the split), or none",
    )
    run.add_argument(
        "--allow-overlap",
        action="store_true",
        help="score images that the run was trained on, with a warning in scores.json",
    )
    run.add_argument("--limit", type=int, default=0, metavar="N", help="first N images only")
    run.add_argument("--batch-size", type=int, metavar="N", help="images per device call")
    files = parser.add_argument_group("captions that are there already")
    files.add_argument("--predictions", metavar="FILE", help="COCO results JSON")
    files.add_argument(
        "--references", metavar="FILE", help="COCO captions JSON, or Karpathy's dataset_coco.json"
    )
    files.add_argument(
        "--metrics",
        metavar="A,B",
        help="of CIDEr,Bleu,ROUGE_L,METEOR,SPICE (default: all that can run; the last two "
        "start Java); official (or official,CIDEr,Bleu): pycocoevalcap computes them, with Java",
    )
    files.add_argument("--images", metavar="DIR", help="the image files, for CLIPScore")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if bool(args.checkpoint) == bool(args.predictions):
        raise UserError(
            "give either --checkpoint=RUN, to caption and score, or --predictions=FILE with "
            "--references=FILE, to score captions that are there"
        )
    if args.seed < 0 or args.limit < 0:
        raise UserError(f"--seed={args.seed} --limit={args.limit}: both must be at least 0")
    if args.checkpoint:
        scores = score_run(args)
    else:
        gc.disable()  # there is nothing to collect, and looking takes a seventh of the time
        try:
            scores = score_files(args)
        finally:
            gc.enable()
    from har_jax.reports.tables import scores_table

    print(scores_table(scores))
    print(f"written to {pathlib.Path(args.out) / 'scores.json'}")
    return 0


def score_run(args: argparse.Namespace) -> dict[str, Any]:
    for flag in ("references", "images", "metrics"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag} goes with --predictions; a run has its dataset (--data=DIR) and all "
                "metrics"
            )
    from har_jax.evaluation.run import evaluate_run

    settings = {"beams": args.beams} if args.method == "beam" else {}
    if args.method == "sample":
        settings = {"temperature": args.temperature}
    return evaluate_run(
        args.checkpoint,
        args.out,
        split=args.split,
        step=args.step,
        method=args.method,
        data=args.data,
        clip=args.clip,
        control=args.control,
        against=args.against,
        limit=args.limit,
        seed=args.seed,
        batch_size=args.batch_size,
        features=args.features,
        allow_overlap=args.allow_overlap,
        **settings,
    ).scores


def score_files(args: argparse.Namespace) -> dict[str, Any]:
    if not args.references:
        raise UserError("--predictions needs --references=FILE, the captions to compare with")
    from har_jax.evaluation.from_files import evaluate_files
    from har_jax.metrics.corpus import METRICS

    metrics = METRICS
    if args.metrics is not None:
        metrics = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
        if not metrics:
            raise UserError(f"--metrics is empty; choose from {', '.join(METRICS)}")
    return evaluate_files(
        args.predictions,
        args.references,
        args.out,
        split=args.split,
        clip=args.clip,
        images=args.images,
        metrics=metrics,
        control=args.control,
        against=args.against,
        limit=args.limit,
        seed=args.seed,
    ).scores


if __name__ == "__main__":
    raise SystemExit(main())
