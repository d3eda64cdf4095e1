"""Signals while nothing, and while something, is unsaved."""

import os
import signal
import subprocess
import sys
import time

import pytest

from har_jax.training.preemption import preemption

pytestmark = pytest.mark.usefixtures("signals_are_heard")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_flag_while_something_is_unsaved(number):
    asked, before = [], signal.getsignal(number)
    with preemption() as preempted:
        preempted.unsaved = lambda: True
        preempted.asked = lambda: asked.append(1)
        assert not preempted(1)
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not preempted(2) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert preempted.number == number
    assert asked == [1] and signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with preemption() as preempted:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.3)
            assert not preempted(1)
    finally:
        signal.signal(signal.SIGHUP, before)


BUSY = """
import ctypes, sys, time
from har_jax.training.preemption import preemption
with preemption() as preempted:
    preempted.unsaved = lambda: UNSAVED
    print("ready", flush=True)
    # As in XLA, no bytecode runs in this thread meanwhile: it waits for itself.
    mutex = (ctypes.c_char * 64)()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("unsaved", "signals"), [(False, ["SIGTERM"]), (True, ["SIGINT"] * 2)])
def test_the_main_thread_need_not_return(unsaved, signals):
    """With nothing unsaved the first signal ends the process, else the second SIGINT does."""
    code = BUSY.replace("UNSAVED", str(unsaved))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    for number, name in enumerate(signals, 1):
        process.send_signal(signal.Signals[name])
        time.sleep(0.5)
        assert (process.poll() is None) == (number < len(signals))
    assert process.returncode == 128 + signal.Signals[signals[-1]]
    process.communicate()


@pytest.mark.parametrize(("unsaved", "presses"), [(False, 1), (True, 2)])
def test_ctrl_c_in_a_notebook_ends_the_call_alone(unsaved, presses):
    code = f"""
import sys, time
from har_jax.training.preemption import preemption
sys.ps1 = "> "
try:
    with preemption() as preempted:
        preempted.unsaved = lambda: {unsaved}
        print("ready", flush=True)
        time.sleep(30)
except KeyboardInterrupt:
    print("still there", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    out, err = process.communicate(timeout=10)
    assert out == "still there\n" and process.returncode == 0, err
