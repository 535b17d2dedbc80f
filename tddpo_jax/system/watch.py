"""A parent process that says why JAX's runtime aborted one host of a job.

When a host is lost, JAX's runtime gives up in a thread of its own: it prints its stack and aborts
the process. Nothing that runs in the aborting process can be relied on to say more. A Python signal
handler waits for the main thread, which waits for the lost host. A Python function as a C handler
needs the interpreter's lock, and the thread that has the lock may wait for the one that aborts.

So a command that joins a job of several hosts runs as a child of itself. The parent needs nothing
of the dying process: the system tells it how the child ended, and the child has told it before,
through a pipe, what an abort would mean. The parent passes signals on to the child, and ends as the
child does. If the parent is killed, the system kills the child (Linux's `PR_SET_PDEATHSIG`), so
that nobody is left with locks or devices.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

# The pipe's end that the child writes to, and the parent's process id.
VARIABLE = "TDDPO_WATCHED_BY"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1


def run_watched(arguments: Sequence[str]) -> int:
    """Runs the command line of this process again, as a child, and ends as the child does.

    Args:
        arguments: the last ones of the command line.

    Returns:
        The child's exit status; 1 if it was aborted, after a line that says why. If another signal
        ended the child, the same signal ends this process.
    """
    rest = len(sys.orig_argv) - len(arguments)
    assert sys.orig_argv[rest:] == list(arguments), "these are not the arguments of this process"
    # Runtimes abort by design here, and the memory of a whole model is no help.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, VARIABLE: f"{writing} {os.getpid()}"},
        close_fds=False,  # a launcher may have left files open for the process it started
        process_group=0,  # or a terminal's Ctrl-C would reach the child twice
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
    """What the child said last, if anything; no more than the pipe holds is waited for."""
    os.set_blocking(reading, False)
    try:
        said = os.read(reading, 2**16).decode().splitlines()
    except BlockingIOError:
        said = []
    return said[-1] if said else "error: aborted"


def parent() -> Callable[[str], None] | None:
    """How to tell the parent what an abort would mean from now on; None without `run_watched`.

    From then on this process ends when its parent does.
    """
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        return None
    writing, process = map(int, given.split())
    os.set_inheritable(writing, False)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != process:  # it ended before we could ask for that
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    return tell
