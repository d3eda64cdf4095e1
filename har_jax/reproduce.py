"""The comparison table: `python -m har_jax.reproduce --scale=tiny --seeds=3`.

Runs the same commands that a reader would type, one after the other, each printed as it starts.
What exists already is not made again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence

from har_jax.errors import UserError, command

DESCRIPTION = """\
Prepares the data, trains MLE and SCST for each seed, evaluates both on the test split, and prints
the table MLE | SCST (mean and standard deviation over the seeds). `tiny` needs nothing but this
package: the embedded scenes and miniature models. `full` takes COCO (Karpathy split) as prepared in
data/coco and the published weights in models/.
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
        "--seeds", type=int, default=5, metavar="N", help="seeds 0..N-1 (default 5)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="start at another seed"
    )
    parser.add_argument("--out", default="runs/reproduce", metavar="DIR", help="run directories")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: give at least one")
    for name in ("mle", "scst"):
        if not (CONFIGS / f"{name}.py").is_file():
            raise UserError(
                f"there is no {CONFIGS / name}.py here; run this from the root of the repository"
            )

    began = time.monotonic()
    if args.scale == "tiny":
        _prepare_tiny()
    out = pathlib.Path(args.out)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for seed in seeds:
        _one_seed(args.scale, seed, out)
    _conclude(out, list(seeds), time.monotonic() - began)
    return 0


def _prepare_tiny() -> None:
    from har_jax import prepare

    if not pathlib.Path("data/scenes/dataset.json").exists():
        _run(prepare.main, "har_jax.prepare", "scenes", "--out=data/scenes")
    if not pathlib.Path("models/scenes/mistral/config.json").exists():
        _run(
            prepare.main,
            "har_jax.prepare",
            "foundation",
            "--data=data/scenes",
            "--out=models/scenes",
        )


def _one_seed(scale: str, seed: int, out: pathlib.Path) -> None:
    from har_jax import evaluate, train
    from har_jax.evaluation.report import write_report

    preset = "tiny" if scale == "tiny" else "coco"
    mle, scst = out / f"mle-{seed}", out / f"scst-{seed}"
    for stage, run, extra in (
        ("mle", mle, []),
        ("scst", scst, [f"--config.init_from={mle}"]),
    ):
        _run(
            train.main,
            "har_jax.train",
            f"--config=configs/{stage}.py:{preset}",
            f"--workdir={run}",
            f"--config.seed={seed}",
            *extra,
        )
        if not (run / "eval" / "test" / "scores.json").exists():
            _run(
                evaluate.main,
                "har_jax.evaluate",
                f"--checkpoint={run}",
                "--split=test",
                "--control=shuffle",
                f"--out={run / 'eval' / 'test'}",
            )
        write_report(run, compare_with=mle if stage == "scst" else None)


def _conclude(out: pathlib.Path, seeds: list[int], seconds: float) -> None:
    from har_jax.evaluation.table import comparison_table

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


def _run(main: Callable[[Sequence[str]], int], module: str, *args: str) -> None:
    """Runs one command in this process, as it would be typed; stops at the first that fails."""
    print(f"\n$ python -m {module} {shlex.join(args)}", flush=True)
    code = main(list(args))
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    raise SystemExit(main())
