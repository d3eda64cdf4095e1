"""`har-jax NAME …`: runs `python -m har_jax.NAME …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from har_jax.command_line import COMMANDS, run
from har_jax.errors import UserError, command, did_you_mean
from har_jax.version import __version__


@command
def main(argv: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-V", "--version"):
        print(f"har_jax {__version__}")
        return 0
    if name in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        print(f"usage: har-jax NAME …, or python -m har_jax.NAME …\n\n{lines}\n")
        print("har-jax NAME --help explains one; har-jax --version")
        return 0
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        raise UserError(f"there is no command {name!r}{near}; choose from {', '.join(COMMANDS)}")
    return run(name, rest)


if __name__ == "__main__":
    raise SystemExit(main())
