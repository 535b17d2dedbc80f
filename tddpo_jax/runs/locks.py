"""Who trains which cell, when several processes work on one grid directory.

A claim is an advisory lock on a file (`flock`), which the system itself lets go when its holder
dies, however it dies: a killed worker's cells are free at once. Works on one machine and on shared
file systems with POSIX locks (NFS 4, Lustre mounted with `flock`). The file says who took the lock
last, host and process, for whoever wonders; nothing depends on what it says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from tddpo_jax.errors import UserError
from tddpo_jax.runs.run_directory import LOCK_FILE
from tddpo_jax.system.agreement import agree

TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


@contextlib.contextmanager
def claim(runs: Sequence[Path]) -> Iterator[bool]:
    """Holds the locks of all run directories, or of none: yields whether it does.

    Every claim takes its locks in the same order and waits for none, so that two processes cannot
    block each other. Of several hosts the first holds them for all.

    Raises:
        UserError: the file system gives no locks.
    """
    with contextlib.ExitStack() as stack:
        yield agree(lambda: all(_lock(run, stack, TRY) for run in sorted(runs)))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder, which is made.

    Raises:
        UserError: the file system gives no locks.
    """
    with contextlib.ExitStack() as stack:
        _lock(folder, stack, fcntl.LOCK_EX)
        yield


def _lock(folder: Path, stack: contextlib.ExitStack, how: int) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"output: {folder}: its file system gives no locks, which runs need ({error.strerror})"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{socket.gethostname()} {os.getpid()}\n".encode())
    return True
