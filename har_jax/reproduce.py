"""The tables of the documentation: `python -m har_jax.reproduce --scale=tiny --seeds=3`.

Runs the same commands that a reader would type, one after the other, each printed as it starts.
What is finished is not made again.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from har_jax.command_line import new_parser, path
from har_jax.errors import UserError, command
from har_jax.settings import Count, Seed, word

DESCRIPTION = """\
Prepares the data, trains MLE and SCST for each seed, evaluates both on the test split, and prints
a table (mean and standard deviation over the seeds). `tiny` needs nothing but this package: the
embedded scenes and miniature models. `full` takes COCO (Karpathy split) as prepared in data/coco
and the published weights in models/.

--table=comparison  MLE | SCST, and ZeroCap on some of the images
--table=paper       ZeroCap | MLE | SCST with intervals and paired tests; writes OUT/paper.md, .json
                    and a page with the captions side by side, OUT/paper.html
--table=rewards     SCST's rewards and baselines on the scenes and on a variant whose training
                    captions guess a person's gender; writes OUT/rewards.md and .json
--table=ablations   HAR with one thing changed at a time; writes OUT/ablations.md and .json

Killed at any moment, the same command goes on. In one --out the tables share what they have in
common; a run with other settings gets a directory of its own, and OUT/parts tells the settings of
each.
"""
TABLES = ("comparison", "paper", "rewards", "ablations")
_ONLY_OF = {
    "mle_steps": TABLES,
    "scst_steps": TABLES,
    "limit": ("paper", "ablations"),
    "skewed_seeds": ("rewards",),
    "only": ("ablations",),
    "list": ("ablations",),
}
_REWARDS_STEPS = 150


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("reproduce", DESCRIPTION)
    add = parser.add_argument
    add("--scale", choices=("tiny", "full"), default="tiny")
    add("--table", choices=TABLES, default="comparison", help="see above (default: comparison)")
    add("--seeds", type=word(Count), default=5, metavar="N", help="seeds 0..N-1 (default 5)")
    add("--first-seed", type=word(Seed), default=0, metavar="S", help="start at another seed")
    out = "run directories (default: runs/reproduce, or runs/rewards)"
    add("--out", type=path, metavar="DIR", help=out)
    add("--mle-steps", type=word(Count), metavar="N", help="default: the preset's")
    steps = "default: the preset's; 150 of rewards"
    add("--scst-steps", type=word(Count), metavar="N", help=steps)
    add("--dry-run", action="store_true", help="print the commands only")
    add = parser.add_argument_group("of some tables").add_argument
    first = "paper, ablations: first N test images (all)"
    add("--limit", type=word(Count), metavar="N", help=first)
    skewed = "rewards: seeds of the skewed variant, the first so many (default: all)"
    add("--skewed-seeds", type=word(Count), metavar="N", help=skewed)
    add("--only", metavar="A,B", help="ablations: these rows, beside the first (default: all)")
    add("--list", action="store_true", default=None, help="ablations: print the known rows")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    for name, tables in _ONLY_OF.items():
        if getattr(args, name) is not None and args.table not in tables:
            flag, allowed = f"--{name.replace('_', '-')}", " or ".join(tables)
            raise UserError(f"{flag} belongs to --table={allowed}, not to {args.table}")
    if args.table in ("rewards", "ablations") and args.scale != "tiny":
        what = f"--table={args.table} is of the scenes"
        raise UserError(f"{what}: --scale=tiny, not {args.scale!r}")
    make(args)
    return 0


def make(args: argparse.Namespace) -> None:
    from har_jax.experiments import ablations, comparison, paper, rewards

    if args.list:
        print(ablations.listing())
        return
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    default = "runs/rewards" if args.table == "rewards" else "runs/reproduce"
    out, steps = pathlib.Path(args.out or default), (args.mle_steps, args.scst_steps)
    if args.table == "rewards":
        steps = (args.mle_steps, _REWARDS_STEPS if args.scst_steps is None else args.scst_steps)
        rewards.run(rewards.Settings(out, seeds, *steps, args.skewed_seeds, args.dry_run))
        return
    settings = paper.Settings(args.scale, out, seeds, steps, args.limit, args.dry_run)
    if args.table == "comparison":
        comparison.run(args.scale, seeds, out, steps=steps, dry_run=args.dry_run)
    elif args.table == "paper":
        paper.run(settings)
    else:
        ablations.run(settings, args.only)


if __name__ == "__main__":
    raise SystemExit(main())
