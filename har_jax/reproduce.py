"""The tables of the documentation: `python -m har_jax.reproduce --scale=tiny --seeds=3`.

Runs the same commands that a reader would type, one after the other, each printed as it starts.
What exists already is not made again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Sequence

from har_jax.errors import UserError, command
from har_jax.experiments import rewards as experiments
from har_jax.experiments.rewards import run_command

DESCRIPTION = """\
Prepares the data, trains MLE and SCST for each seed, evaluates both on the test split, and prints
the table MLE | SCST (mean and standard deviation over the seeds). `tiny` needs nothing but this
package: the embedded scenes and miniature models. `full` takes COCO (Karpathy split) as prepared in
data/coco and the published weights in models/.

--table=rewards compares SCST's rewards and baselines instead, on the scenes and on a variant whose
training captions guess a person's gender: greedy and leave-one-out baselines, CIDEr-D + CLIPScore,
and the term against unsupported gendered words. It writes OUT/rewards.md and OUT/rewards.json.
"""

CONFIGS = pathlib.Path("configs")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m har_jax.reproduce",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=("tiny", "full"), default="tiny")
    parser.add_argument(
        "--table",
        choices=("comparison", "rewards"),
        default="comparison",
        help="MLE | SCST (default), or the rewards and baselines of SCST (at scale tiny)",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="seeds 0..N-1 (default 5)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="start at another seed"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="run directories (default: runs/reproduce, or runs/rewards)"
    )
    parser.add_argument("--mle-steps", type=int, metavar="N", help="of the table of rewards")
    parser.add_argument(
        "--scst-steps",
        type=int,
        default=150,
        metavar="N",
        help="of the table of rewards (default: 150)",
    )
    parser.add_argument(
        "--skewed-seeds",
        type=int,
        metavar="N",
        help="of the skewed variant in it, the first so many (default: all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands of the table of rewards only"
    )
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: give at least one")
    for name in ("mle", "scst"):
        if not (CONFIGS / f"{name}.py").is_file():
            raise UserError(
                f"there is no {CONFIGS / name}.py here; run this from the root of the repository"
            )

    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.table == "rewards":
        return _rewards(args, seeds)
    began = time.monotonic()
    if args.scale == "tiny":
        experiments.prepare(experiments.SCENES)
    out = pathlib.Path(args.out or "runs/reproduce")
    for seed in seeds:
        _one_seed(args.scale, seed, out)
    _conclude(out, list(seeds), time.monotonic() - began)
    return 0


def _rewards(args: argparse.Namespace, seeds: Sequence[int]) -> int:
    if args.scale != "tiny":
        raise UserError(f"--table=rewards is of the scenes: --scale=tiny, not {args.scale!r}")
    settings = experiments.Settings(
        pathlib.Path(args.out or "runs/rewards"),
        seeds,
        mle_steps=args.mle_steps,
        scst_steps=args.scst_steps,
        skewed_seeds=args.skewed_seeds,
        dry_run=args.dry_run,
    )
    experiments.check(settings)
    experiments.run(settings)
    return 0


def _one_seed(scale: str, seed: int, out: pathlib.Path) -> None:
    from har_jax import evaluate, train
    from har_jax.reports.page import write_report

    preset = "tiny" if scale == "tiny" else "coco"
    mle, scst = out / f"mle-{seed}", out / f"scst-{seed}"
    for stage, run, extra in (
        ("mle", mle, []),
        ("scst", scst, [f"--config.init_from={mle}"]),
    ):
        run_command(
            train.main,
            "har_jax.train",
            f"--config=configs/{stage}.py:{preset}",
            f"--workdir={run}",
            f"--config.seed={seed}",
            *extra,
        )
        if not (run / "eval" / "test" / "scores.json").exists():
            run_command(
                evaluate.main,
                "har_jax.evaluate",
                f"--checkpoint={run}",
                "--split=test",
                "--control=shuffle",
                f"--out={run / 'eval' / 'test'}",
            )
        write_report(run, compare_with=mle if stage == "scst" else None)


def _conclude(out: pathlib.Path, seeds: list[int], seconds: float) -> None:
    from har_jax.reports.tables import comparison_table

    scores = {
        name: [
            json.loads((out / f"{stage}-{seed}" / "eval" / "test" / "scores.json").read_text())
            for seed in seeds
        ]
        for name, stage in (("MLE", "mle"), ("SCST", "scst"))
    }
    print(f"\ntest split, {len(seeds)} seed(s), {seconds / 60:.1f} minutes\n")
    print(comparison_table(scores))
    for seed in seeds:
        print(f"report: {out / f'scst-{seed}' / 'report.html'}")


if __name__ == "__main__":
    raise SystemExit(main())
