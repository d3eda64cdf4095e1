"""`python -m har_jax.doctor`: looks at an SCST run before it starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

from har_jax import config_file
from har_jax.command_line import new_parser, read_overrides, setup_logging
from har_jax.config import Config
from har_jax.errors import UserError, command
from har_jax.files import dumps
from har_jax.hardware import keep_memory
from har_jax.settings import Range, word

Images = Annotated[int, Range(at_least=2, at_most=1_000_000)]

DESCRIPTION = """\
Finds out whether SCST has anything to learn from, before a day of a machine is spent on it: does
the reward see the captions as the references are (tokenizer, end of sentence, document
frequencies), do captions of the MLE policy earn anything, how far are samples from the greedy
caption, how many of them have no advantage? One line for each thing looked at; exit code 2 if
training could only waste its time. har_jax.train asks the same before its first step.
"""

EXAMPLES = """\
examples:
  python -m har_jax.doctor --config=configs/scst.py:tiny --config.init_from=runs/mle
  python -m har_jax.doctor --config=configs/scst.py:coco --config.init_from=runs/mle --images=256

docs/doctor.md explains every finding.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("doctor", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--config", metavar="FILE[:PRESET]", required=True, help="configuration file of SCST")
    images = "training images (default: 64)"
    add("--images", type=word(Images), default=64, metavar="N", help=images)
    add("--json", action="store_true", help="the findings as JSON")
    arguments, rest = parser.parse_known_args(argv)
    overrides = read_overrides(rest, parser.prog)
    setup_logging()
    logging.getLogger("har_jax").setLevel(logging.WARNING)
    config = config_file.load(arguments.config, overrides)
    if config.stage != "scst":
        raise UserError(
            f"--config={arguments.config} is of stage {config.stage!r}; the doctor looks at SCST: "
            "--config=scst:tiny"
        )
    return examine(config, arguments.images, as_json=arguments.json)


def examine(config: Config, images: int, *, as_json: bool = False) -> int:
    """Prints the findings; 2 if one of them should stop a run."""
    from har_jax.sessions import doctor
    from har_jax.sessions.assemble import assemble
    from har_jax.sessions.plan import plan_session

    keep_memory()
    plan = plan_session(config, "")
    findings = doctor.examine_texts(plan, images)
    # A reward that cannot be computed needs no policy to show it.
    if not any(f.name == "reward" and f.severity == "stop" for f in findings):
        session = assemble(plan)
        findings += doctor.examine_policy(session, session.initial_params(), images).findings
    if as_json:
        print(dumps([vars(finding) for finding in findings], indent=1))
    else:
        print(*findings, sep="\n")
    stops = sum(finding.severity == "stop" for finding in findings)
    if stops and not as_json:
        print(f"{stops} of {len(findings)} findings stop this run")
    return 2 if stops else 0


if __name__ == "__main__":
    raise SystemExit(main())
