"""Locks that decide which process trains which cell of a shared grid directory.

A claim is an advisory lock on a file (`flock`). The system releases the lock when its holder ends,
for whatever reason, so a killed worker's cells are free at once. This works on one machine and on
shared file systems with POSIX locks (NFS 4, Lustre mounted with `flock`). The file names the host
and the process that took the lock last. People may read it; the program does not.
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
    """Takes the locks of all these run directories, and yields whether it got them all.

    Every claim takes its locks in the same order and never waits, so two processes cannot block
    each other. In a job of several hosts, the first host holds the locks for all.

    Raises:
        UserError: the file system does not support locks.
    """
    with contextlib.ExitStack() as stack:
        yield agree(lambda: all(_lock(run, stack, TRY) for run in sorted(runs)))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder, and waits until no other process is in this block with the same folder.

    Raises:
        UserError: the file system does not support locks.
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
            f"output: {folder}: its file system does not support locks, which runs need "
            f"({error.strerror})"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{socket.gethostname()} {os.getpid()}\n".encode())
    return True
