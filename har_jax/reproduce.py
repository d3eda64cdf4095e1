"""The tables of the documentation: `python -m har_jax.reproduce --scale=tiny --seeds=3`.

Runs the same commands that a reader would type, one after the other, each printed as it starts.
What exists already is not made again.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from har_jax.command_line import new_parser
from har_jax.errors import UserError, command

DESCRIPTION = """\
Prepares the data, trains MLE and SCST for each seed, evaluates both on the test split, and prints
the table MLE | SCST (mean and standard deviation over the seeds). `tiny` needs nothing but this
package: the embedded scenes and miniature models. `full` takes COCO (Karpathy split) as prepared in
data/coco and the published weights in models/.

--table=rewards compares SCST's rewards and baselines instead, on the scenes and on a variant whose
training captions guess a person's gender: greedy and leave-one-out baselines, CIDEr-D + CLIPScore,
and the term against unsupported gendered words. It writes OUT/rewards.md and OUT/rewards.json.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("reproduce", DESCRIPTION)
    add = parser.add_argument
    add("--scale", choices=("tiny", "full"), default="tiny")
    table = "MLE | SCST (default), or the rewards and baselines of SCST (at scale tiny)"
    add("--table", choices=("comparison", "rewards"), default="comparison", help=table)
    add("--seeds", type=int, default=5, metavar="N", help="seeds 0..N-1 (default 5)")
    add("--first-seed", type=int, default=0, metavar="S", help="start at another seed")
    add("--out", metavar="DIR", help="run directories (default: runs/reproduce, or runs/rewards)")
    add("--dry-run", action="store_true", help="print the commands only")
    add = parser.add_argument_group("of --table=rewards").add_argument
    add("--mle-steps", type=int, metavar="N", help="default: the preset's")
    add("--scst-steps", type=int, default=150, metavar="N", help="default: 150")
    skewed = "of the skewed variant, the first so many (default: all)"
    add("--skewed-seeds", type=int, metavar="N", help=skewed)
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: give at least one")
    seeds = range(args.first_seed, args.first_seed + args.seeds)

    from har_jax.experiments import comparison, rewards

    if args.table == "comparison":
        out = pathlib.Path(args.out or "runs/reproduce")
        comparison.run(args.scale, seeds, out, dry_run=args.dry_run)
        return 0
    if args.scale != "tiny":
        raise UserError(f"--table=rewards is of the scenes: --scale=tiny, not {args.scale!r}")
    steps, out = (args.mle_steps, args.scst_steps), pathlib.Path(args.out or "runs/rewards")
    rewards.run(rewards.Settings(out, seeds, *steps, args.skewed_seeds, args.dry_run))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
