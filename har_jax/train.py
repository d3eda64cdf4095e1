"""Trains a captioner: `python -m har_jax.train --config=FILE[:PRESET] --workdir=DIR`."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from har_jax import config_file, config_keys
from har_jax.command_line import new_parser, path, read_overrides, setup_logging, steps
from har_jax.config import Config
from har_jax.errors import UserError, command
from har_jax.hardware import keep_memory
from har_jax.progress import write
from har_jax.settings import Count, word

log = logging.getLogger("har_jax")

DESCRIPTION = """\
Trains a captioner in two stages. Stage 1 (configs/mle.py) teaches the projector and the decoder the
references by maximum likelihood. Stage 2 (configs/scst.py) starts from such a run and raises the
CIDEr-D of the model's own captions by self-critical training.

A run directory that exists is resumed: the same command, given again after a crash, a kill or a
preemption, continues with the same batches and the same random numbers. --workdir=DIR alone does
too, with the settings that the run was begun with.
"""

EXAMPLES = """\
examples:
  python -m har_jax.train --config=configs/mle.py:tiny --workdir=runs/mle
  python -m har_jax.train --config=configs/scst.py:tiny --workdir=runs/scst \\
      --config.init_from=runs/mle --config.optim.lr=1e-4
  python -m har_jax.train --workdir=runs/scst
  python -m har_jax.train --config=scst:tiny --print-config

FILE is a Python file, or the name of presets that come with the package (mle, scst).
--config.KEY=VALUE changes one setting of it; --print-config lists them all, as docs/config.md does.
"""


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The arguments, and the `--config.KEY=VALUE` (or `--config.KEY VALUE`) overrides."""
    parser = new_parser("train", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--config", metavar="FILE[:PRESET]", help="configuration; default: that of the run in DIR")
    add("--workdir", type=path, metavar="DIR", help="the run directory to create or to resume")
    shown = "print the resolved configuration as YAML, with what each key is and may be, and stop"
    add("--print-config", action="store_true", help=shown)
    add("--stop-after", type=word(Count), metavar="N", help="leave in order after N steps")
    traced = "trace these steps, both included, in DIR/profile"
    add("--profile", type=steps, metavar="START:STOP", help=traced)
    known, rest = parser.parse_known_args(argv)
    return known, read_overrides(rest, parser.prog)


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parse(argv)
    setup_logging()
    config = configuration(arguments.config, arguments.workdir, overrides)
    if arguments.print_config:
        print(config_keys.as_yaml(config), end="")
        return 0
    if not arguments.workdir:
        raise UserError("--workdir is missing; give the run directory: --workdir=runs/NAME")
    return run(config, arguments)


def configuration(spec: str | None, workdir: str | None, overrides: dict[str, str]) -> Config:
    """What `--config` names; without it, what the run in `workdir` was begun with.

    Raises:
      UserError: neither is given, or there is no run.
    """
    if spec is not None:
        return config_file.load(spec, overrides)
    if workdir is None:
        raise UserError(
            "neither --config nor --workdir is given; begin a run with --config=mle:tiny "
            "--workdir=runs/NAME, or resume one with its --workdir alone"
        )
    from har_jax.training.run_dir import begun_with

    return config_file.changed(begun_with(workdir), overrides)


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Everything that needs no device first, then the run itself, and its report."""
    from har_jax.distributed import join_if_asked
    from har_jax.reports.ending import end_of_run
    from har_jax.sessions import run as session
    from har_jax.sessions.plan import plan_session
    from har_jax.training.profile import Profile

    workdir, profile = arguments.workdir, arguments.profile
    keep_memory()
    plan = plan_session(config, workdir, arguments.config or "")
    join_if_asked()
    traced = Profile(os.path.join(workdir, "profile"), *profile) if profile else None
    outcome = session.train(plan, stop_after=arguments.stop_after, profile=traced)
    if outcome.primary and not outcome.signal:  # who sends one does not wait for a page
        end_of_run(workdir, finished=outcome.finished)
    if outcome.stopped_by:
        name = outcome.stopped_by.guard
        write(
            f"stopped at step {outcome.step}: {outcome.stopped_by}. Lower config.optim.lr in a new "
            f"run, or give the same command with --config.guards.{name}=warn to go on"
        )
        return 1
    if not outcome.finished:
        log.info("left in order at step %d; the same command continues this run", outcome.step)
        return 128 + outcome.signal if outcome.signal else 0  # as a shell reports it
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
