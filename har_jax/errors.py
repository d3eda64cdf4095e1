"""Errors that a user can fix, and how the commands report them.

`UserError` is for anything wrong with what was asked: one line that says what is wrong, what was
given, what is allowed and how to fix it. Commands print that line and exit with code 2; a library
caller catches a `ValueError`. What the machine refuses (a full disk, no rights, no memory) is told
in a line too (`refused_by_machine`). Every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

_LONGEST = 900  # characters of a line
_NEAR = 0.65  # of difflib's ratio: two letters of three in their order, as in "mel" and "mle"


class UserError(ValueError):
    """Bad input: `str(error)` is one clear line (what, got, allowed, fix).

    Whatever texts of others went into it, it stays one line: what cannot be printed is escaped,
    and of what is too long the middle is left out.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text as a line that a terminal can show whole, and that cannot steer the terminal."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST else f"{text[:600]} ... {text[-250:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix such as `" (did you mean 'lr'?)"`, or `""` when nothing known is near `word`."""
    by_folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word[:100].casefold(), by_folded, n=1, cutoff=_NEAR)
    return f" (did you mean {by_folded[near[0]]!r}?)" if near else ""


def raised_by(error: BaseException) -> str:
    """What other code raised, and where: `ValueError: no such word (mine.py, line 12)`."""
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return told
    name = os.path.basename(trace.tb_frame.f_code.co_filename)
    return f"{told} ({name}, line {trace.tb_lineno})"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR = re.compile(r"\[OS error (\d+)[:\]]|\[Errno (\d+)\]|\[os_error_code='?(\d+)'?\]")
"""How TensorStore, below Orbax, tells of what the system refused."""


def refused_by_machine(error: BaseException) -> str | None:
    """What to say where the machine is the cause: a full or read-only disk, no rights, no memory.
    None of anything else."""
    for cause in _chain(error):
        if isinstance(cause, ConnectionError | TimeoutError | ChildProcessError):
            return None  # of other machines and programs
        if isinstance(cause, OSError) and cause.errno is not None:
            return _of_the_disk(cause.errno, cause.filename)
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause)[:2000]:
            if told := _told_of_disk(str(cause)):
                return told
            said = str(cause).partition("\n")[0][:200] or "no memory is left"
            return (
                f"out of memory ({said}); lower the batch size (config.batch_size, "
                "config.eval.batch_size, --batch-size), raise config.microbatches, or set "
                "config.model.remat=full; `preflight` tells what fits"
            )
        if not isinstance(cause, UserError) and (told := _told_of_disk(str(cause))):
            return told
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)


def _told_of_disk(text: str) -> str | None:
    """`_of_the_disk`, of a text that holds the system's number, and perhaps the file's name."""
    found, name = _OS_ERROR.search(text), re.search(r'"(/[^"]+)"', text)
    if found is None:
        return None
    return _of_the_disk(int(next(filter(None, found.groups()))), name and name[1])


def _of_the_disk(number: int, name: object) -> str:
    where = f"{os.fsdecode(name)!r}: " if isinstance(name, str | bytes) else ""
    if number in _FULL:
        return f"{where}{os.strerror(number)}; make room, and give the same command again"
    fix = "check that path, its disk and your rights, and give the same command again"
    return f"{where}{os.strerror(number)}; {fix}"


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Wraps a command's `main(argv)`: a `UserError`, and what the machine refuses, become one line
    on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        _open_standard_streams()
        try:
            return main(argv) or 0
        except UserError as error:
            _tell(f"error: {error}")
            return 2
        except BrokenPipeError:  # `… | head`: the reader has gone; nothing is left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt as error:
            _tell(f"interrupted: {error}" if str(error) else "interrupted")
            return 130
        except Exception as error:
            told = refused_by_machine(error)
            if told is None:
                raise
            _tell(f"error: {one_line(told)}")
            return 2

    return wrapped


def _tell(line: str) -> None:
    """The last line of a command; the exit code says it too where nobody can be told."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def _open_standard_streams() -> None:
    """Gives a process that was started with closed streams (`2>&-`, some daemons) ones that lead
    nowhere. Otherwise the next file that is opened takes the place of one, and what libraries
    write to stderr goes into it. And of what a stream's encoding lacks, writes the escape: at the
    end of long work is no time to refuse a letter."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
