"""A command as a child of itself: how it ends, and what its parent says then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from places import ROOT

# What the child does, behind `import` and `tell`.
STATUS = "sys.exit(int(sys.argv[2]))"
WAIT = "print(os.getpid(), flush=True); time.sleep(60)"
ABORT_UNTOLD = "os.abort()"
ABORT = "tell('error: not yet'); tell('error: another host was lost'); os.abort()"
# One thread aborts while another has the interpreter's lock and does not give it back.
ABORT_WITHOUT_THE_LOCK = """
tell('error: another host was lost')
sys.setswitchinterval(1000)
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
thread.start()
with_the_lock = ctypes.PyDLL(None)
with_the_lock.pthread_kill(ctypes.c_ulong(thread.ident), signal.SIGABRT)
with_the_lock.sleep(60)
"""
SCRIPT = """
import ctypes, os, signal, sys, threading, time
from tddpo_jax.system import watch

tell = watch.parent()
if tell is None:
    sys.exit(watch.run_watched(sys.argv[1:]))
exec(sys.argv[1])
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """(status, errors), when the process and its child have ended."""
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("status", [0, 2, 130])
def test_a_status_is_passed_on(status):
    assert ended(start(STATUS, str(status))) == (status, "")


@pytest.mark.parametrize("how", [ABORT, ABORT_WITHOUT_THE_LOCK])
def test_an_abort_is_one_line_and_status_1(how):
    assert ended(start(how)) == (1, "error: another host was lost\n")


def test_an_abort_of_which_nothing_was_told():
    assert ended(start(ABORT_UNTOLD)) == (1, "error: the process was aborted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_child_and_ends_both(number):
    process = start(f"signal.signal({int(number)}, signal.SIG_DFL); {WAIT}")
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert ended(process) == (-number, "")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_killed_parent_leaves_no_child():
    process = start(WAIT)
    process.stdout.readline()
    process.kill()
    # Waits for the child too, which has the same output.
    assert ended(process) == (-signal.SIGKILL, "")


def test_a_process_that_nobody_watches_is_told_so():
    script = "from tddpo_jax.system import watch; print(watch.parent())"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n"
