"""What the commands say where the machine refuses: one line, and exit code 2."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from har_jax.errors import UserError, command, one_line, raised_by
from tests.conftest import ROOT


def told(capsys, error):
    @command
    def main(argv=None):
        raise error

    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 1000
    return err


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EIO],
)
def test_the_disk(capsys, number):
    error = OSError(number, os.strerror(number), "/runs/a/metrics.jsonl")
    assert f"'/runs/a/metrics.jsonl': {os.strerror(number)}; " in told(capsys, error)
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert os.strerror(number) in told(capsys, wrapped)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore\nlines"),
    ],
)
def test_memory(capsys, error):
    assert "lower the batch size (config.batch_size, config.eval.batch_size" in told(capsys, error)


def test_a_bug_keeps_its_traceback():
    @command
    def main(argv=None):
        raise KeyError("a")

    with pytest.raises(KeyError):
        main()


FULL = """
import resource, signal, sys
import jax, jax.numpy as jnp
from har_jax.checkpoint import Checkpoints
from har_jax.errors import command
@command
def main(argv=None):
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"a": jnp.zeros(3)}, {"m": jnp.zeros(3)}, {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    noise = jax.random.normal(jax.random.key(0), (1 << 18,))
    checkpoints.save(2, {"a": noise}, {"m": noise}, {})
    checkpoints.wait()
raise SystemExit(main())
"""


def test_a_full_disk_while_saving(tmp_path):
    """Orbax tells of it in hundreds of lines. Files that may not grow stand for such a disk."""
    argv = [sys.executable, "-c", FULL, str(tmp_path)]
    env = {**os.environ, "XLA_FLAGS": ""}
    found = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    lines = [line for line in found.stderr.splitlines() if "UserWarning" not in line]
    errors = [line for line in lines if line.startswith("error: ")]
    assert found.returncode == 2 and len(errors) == 1 and "Traceback" not in found.stderr, lines
    assert str(tmp_path) in errors[0] and "File too large; make room" in errors[0]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["1"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_what_is_not_of_the_disk_keeps_its_traceback():
    """A refused connection, and a fault of ours that hides an error of the system."""

    @command
    def connects(argv=None):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    @command
    def hides(argv=None):
        try:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        except OSError:
            raise KeyError("a bug") from None

    with pytest.raises(ConnectionRefusedError):
        connects()
    with pytest.raises(KeyError):
        hides()


def test_one_line():
    assert one_line("a\nb\x1b[2J\ud800é") == "a\\nb\\x1b[2J\\ud800é"
    assert len(one_line("x" * 10_000)) < 1000 and str(UserError("a\rb")) == "a\\rb"


def test_what_other_code_raised():
    try:
        exec(compile("\n1 / 0", "/somewhere/mine.py", "exec"))
    except ZeroDivisionError as error:
        assert raised_by(error) == "ZeroDivisionError: division by zero (mine.py, line 2)"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full(tmp_path, closed):
    """The command works all the same, and no file of its own takes the place of a stream."""
    file = tmp_path / "made"
    program = (
        "from har_jax.errors import command\n"
        "from har_jax.progress import progress, write\n"
        "@command\n"
        "def main(argv=None):\n"
        f"    with open({str(file)!r}, 'wb') as made, progress(1, desc='work'):\n"
        "        write('a line'); print('a figure')\n"
        "        assert made.fileno() > 2\n"
        "        made.write(b'whole')\n"
        "    return 5\n"
        "raise SystemExit(main())\n"
    )
    run = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], cwd=ROOT
    )
    assert run.returncode == 5
    assert file.read_bytes() == b"whole"


def test_an_error_that_nobody_can_read():
    program = (
        "from har_jax.errors import UserError, command\n"
        "@command\n"
        "def main(argv=None): raise UserError('no')\n"
        "raise SystemExit(main())\n"
    )
    for closed in ("2>&-", "2>/dev/full"):
        run = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], cwd=ROOT
        )
        assert run.returncode == 2
