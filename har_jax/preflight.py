"""`python -m har_jax.preflight`: whether a run fits devices that need not be there."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from har_jax import config_file
from har_jax.command_line import new_parser, read_overrides, setup_logging
from har_jax.config import Config
from har_jax.errors import UserError, command
from har_jax.presets import published
from har_jax.sessions import topologies
from har_jax.settings import NotNegative, word

log = logging.getLogger("har_jax")

DESCRIPTION = """\
Compiles the very step that har_jax.train would run, for devices that need not be there, and says
what each of them would hold, what travels between them, and how fast the step can be at best.
Nothing but the models' config.json files is read (of the presets' models, not even these): no
weights, no dataset, no tokenizer.
"""

EXAMPLES = """\
examples:
  python -m har_jax.preflight --config=configs/scst.py:coco --topology=v5e:4x4
  python -m har_jax.preflight --config=scst:coco --topology=h100:8 --config.mesh.tensor=2
  python -m har_jax.preflight --config=mle:coco --topology=v5litepod-16 --json
  python -m har_jax.preflight --config=scst:coco        # the devices of this machine

TOPOLOGY is v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1 (or v5litepod-16, v5p-128, ...), h100:8,
a100:8, cpu:8. TPUs need pip install 'har_jax[preflight-tpu]', GPUs 'har_jax[preflight-gpu]'.
Exit 0: it fits; 2: it does not.
"""


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = new_parser("preflight", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--config", metavar="FILE[:PRESET]", required=True, help="configuration file")
    add("--topology", metavar="TOPOLOGY", help="the devices; by default those that are there")
    add(
        "--programs",
        default="train",
        metavar="NAMES",
        help="train (default), caption (as validation writes captions), or train,caption",
    )
    add(
        "--search",
        type=word(NotNegative),
        default=240.0,
        metavar="SECONDS",
        help="how long to try other settings where it does not fit (default: 240; 0: not at all)",
    )
    add("--json", action="store_true", help="print JSON")
    known, rest = parser.parse_known_args(argv)
    return known, read_overrides(rest, parser.prog)


def _programs(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in ("train", "caption"):
            raise UserError(f"--programs={text}: {name!r} is unknown; choose train, caption")
    return names


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parse(argv)
    setup_logging()
    topology = topologies.parse(arguments.topology) if arguments.topology else None
    names = _programs(arguments.programs)
    config = config_file.load(arguments.config, overrides, alone=True)
    topologies.prepare_environment(topology)
    with tempfile.TemporaryDirectory() as folder:
        config = published.described(config, Path(folder))
        return run(config, topology, names, arguments.search, arguments.json)


def run(
    config: Config,
    topology: topologies.Topology | None,
    names: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> int:
    """Compiles, and where it does not fit, looks for what does."""
    from har_jax.files import dumps
    from har_jax.loading.blueprint import draw
    from har_jax.loading.start import settled
    from har_jax.sessions import preflight_report as report
    from har_jax.sessions.preflight import examine, what_fits

    if config.init_from and not (config.model.encoder and config.model.lm):
        config, _ = settled(config)
    features = None
    if not config.model.encoder:
        raise UserError("preflight needs config.model.encoder: its directory or its name")
    blueprint = draw(config.model, features)
    devices = topologies.describe(topology)
    verdict = examine(blueprint, config, devices, names)
    found = None
    if not verdict.fits and seconds > 0:
        found = what_fits(blueprint, config, devices, names, seconds)
    if as_json:
        print(dumps(report.as_json(verdict, found)))
    else:
        print(report.as_text(verdict, found))
    return 0 if verdict.fits else 2


if __name__ == "__main__":
    raise SystemExit(main())
