"""Work in processes beside each other: results, cores, errors, and ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from har_jax.errors import UserError
from har_jax.miniature import workers

ROOT = pathlib.Path(__file__).parents[2]


def _cores(name):
    time.sleep(0.2)
    return name, os.getpid(), sorted(os.sched_getaffinity(0))


def _fails(name):
    if name == "bad":
        raise UserError("it is bad; give another")
    if name == "worse":
        raise OSError("of the system's")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path(name).touch()
    try:
        time.sleep(60)
    finally:
        pathlib.Path(name).unlink()


def test_each_in_a_process_on_its_share_of_the_cores():
    own = workers.cores()
    n = min(2, len(own))
    found = dict(workers.side_by_side(_cores, ["a", "b", "c"], n))
    assert sorted(found) == ["a", "b", "c"]
    assert all(name == told for name, (told, _, _) in found.items())
    assert len({pid for _, pid, _ in found.values()} | {os.getpid()}) == 4
    shares = {tuple(cores) for _, _, cores in found.values()}
    assert sorted(core for share in shares for core in share) == own and len(shares) == n
    assert workers.cores() == own, "this process keeps its own"


def test_more_workers_than_cores():
    n = len(workers.cores()) + 1
    found = dict(workers.side_by_side(_cores, [str(i) for i in range(n)], n))
    assert len(found) == n and all(cores for _, _, cores in found.values())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bad", UserError, "it is bad; give another"),
        ("worse", RuntimeError, "worse: OSError\\('of the system's|worse: OSError\\(\"of"),
        ("killed", RuntimeError, "the process of killed ended with -9"),
    ],
)
def test_the_others_are_stopped_and_may_tidy_up(tmp_path, name, error, message):
    other = tmp_path / "other"
    made = workers.side_by_side(_fails, [str(other), name], 2)
    with pytest.raises(error, match=message):
        next(made)
    assert not other.exists()


SCRIPT = """
import pathlib, signal, sys, time
from har_jax.miniature import workers

def work(name):
    begun = pathlib.Path(name + ".partial")
    begun.touch()
    pathlib.Path(name).write_text(str(__import__("os").getpid()))
    try:
        time.sleep(60)
    finally:
        begun.unlink()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    list(workers.side_by_side(work, sys.argv[1:], 2))
"""


@pytest.fixture
def at_work(tmp_path):
    """A program whose two workers have begun, in a session of its own; and their pids."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    files = [tmp_path / "a", tmp_path / "b"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    how = {"env": environment, "start_new_session": True, "stderr": subprocess.DEVNULL}
    parent = subprocess.Popen([sys.executable, script, *files], **how)
    try:
        _wait(lambda: all(file.exists() and file.read_text() for file in files))
        yield parent, [int(file.read_text()) for file in files]
    finally:
        parent.kill()
        parent.wait()


def test_nothing_outlives_a_killed_parent(at_work, tmp_path):
    parent, pids = at_work
    parent.kill()
    _wait(lambda: not any(_runs(pid) for pid in pids))
    assert not list(tmp_path.glob("*.partial")), "what was begun is removed"


def test_ctrl_c_reaches_all_of_them(at_work, tmp_path):
    parent, pids = at_work
    os.killpg(parent.pid, signal.SIGINT)
    _wait(lambda: not any(_runs(pid) for pid in [parent.pid, *pids]))
    assert not list(tmp_path.glob("*.partial")), "what was begun is removed"


def _wait(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
