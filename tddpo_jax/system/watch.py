"""A parent process that explains why JAX's runtime aborted one host of a job.

When a host is lost, a thread of JAX's runtime prints its stack and aborts the process. Code in the
aborting process cannot reliably print an explanation. A Python signal handler waits for the main
thread, which waits for the lost host. A Python function as a C handler needs the interpreter's
lock, and the thread that holds the lock may wait for the thread that aborts.

So a command that joins a job of several hosts runs as a child of itself. The parent needs nothing
from the dying process. The system reports how the child ended. Before that, the child has sent a
line through a pipe: the explanation of an abort at this time. The parent passes signals on to the
child and ends as the child does. If the parent is killed, the system kills the child (Linux's
`PR_SET_PDEATHSIG`), so that no process keeps locks or devices.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from tddpo_jax.errors import UserError

# This environment variable holds the pipe's end for the child and the parent's process id.
VARIABLE = "TDDPO_WATCHED_BY"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1


def run_watched(arguments: Sequence[str]) -> int:
    """Runs the command line of this process again, as a child, and ends as the child does.

    Args:
        arguments: the last arguments of the command line.

    Returns:
        The child's exit status. If the child was aborted, 1, after a line that explains why. If
        another signal ended the child, the same signal ends this process.

    Raises:
        UserError: the command line of this process does not end with these arguments.
    """
    rest = len(sys.orig_argv) - len(arguments)
    if sys.orig_argv[rest:] != list(arguments):
        raise UserError(
            "hosts: a job of several hosts needs the arguments of this process, sys.argv[1:]"
        )
    # An abort is expected here. A core dump would write the memory of a whole model for nothing.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, VARIABLE: f"{writing} {os.getpid()}"},
        close_fds=False,  # the launcher may have left files open for the process that it started
        process_group=0,  # else a terminal's Ctrl-C would reach the child twice
    )
    os.close(writing)
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: child.send_signal(received))
    status = child.wait()
    if status >= 0:
        return status
    if status == -signal.SIGABRT:
        print(_last_line(reading), file=sys.stderr, flush=True)
        return 1
    if -status in PASSED_ON:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def _last_line(reading: int) -> str:
    """The last line that the child sent; this reads only what the pipe holds and never waits."""
    os.set_blocking(reading, False)
    try:
        said = os.read(reading, 2**16).decode().splitlines()
    except BlockingIOError:
        said = []
    return said[-1] if said else "error: the process was aborted"


def parent() -> Callable[[str], None] | None:
    """Gives a function that tells the parent how to explain an abort from now on.

    None if `run_watched` did not start this process. Otherwise this process now ends when its
    parent does.
    """
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        return None
    writing, process = map(int, given.split())
    os.set_inheritable(writing, False)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != process:  # the parent ended before the line above took effect
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    return tell
