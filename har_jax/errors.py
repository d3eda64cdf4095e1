"""Errors that a user can fix, and how the commands report them.

`UserError` is for anything wrong with what was asked: one line that says what is wrong, what was
given, what is allowed and how to fix it. Commands print that line and exit with code 2; a library
caller catches a `ValueError`. Every other exception is a bug (or the machine) and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(ValueError):
    """Bad input: `str(error)` is one clear line (what, got, allowed, fix)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix such as `" (did you mean 'lr'?)"`, or `""` when nothing known is near `word`."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Wraps a command's `main(argv)`: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # `… | head`: the reader has gone; nothing is left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt as error:
            print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
            return 130

    return wrapped
