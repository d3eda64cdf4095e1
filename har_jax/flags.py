"""What commands that take a configuration share: settings on the command line, and messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from har_jax.errors import UserError
from har_jax.progress import write


def read_overrides(rest: Sequence[str], command: str) -> dict[str, str]:
    """`--config.KEY=VALUE` (or `--config.KEY VALUE`) among the words that a parser left over.

    Raises:
      UserError: any other word, or a key without a value.
    """
    overrides: dict[str, str] = {}
    left = list(rest)
    while left:
        word = left.pop(0)
        if not word.startswith("--config."):
            raise UserError(
                f"unknown argument {word!r}; settings are given as --config.KEY=VALUE, and "
                f"{command} --help explains the rest"
            )
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not left:
                raise UserError(f"{word} needs a value: {word}=VALUE")
            value = left.pop(0)
        overrides[key] = value
    return overrides


class AboveBars(logging.Handler):
    """Writes to stderr without tearing a progress bar that is being drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        write(self.format(record))


def setup_logging() -> None:
    """Messages with the time; third parties only when something is wrong."""
    handler = AboveBars()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("har_jax").setLevel(logging.INFO)
