"""Who trains which cell, when several processes work on one grid directory.

A claim is an advisory lock on a file (`flock`), which the system itself lets go when its holder
dies, however it dies: a killed worker's cells are free at once. Works on one machine and on shared
file systems with POSIX locks (NFS 4, Lustre mounted with `flock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tddpo_jax.hosts import agree
from tddpo_jax.run_directory import LOCK_FILE


@contextlib.contextmanager
def claim(runs: Sequence[Path]) -> Iterator[bool]:
    """Holds the locks of all run directories, or of none: yields whether it does.

    Every claim takes its locks in the same order and waits for none, so that two processes cannot
    block each other. Of several hosts the first holds them for all.
    """
    with contextlib.ExitStack() as stack:
        yield agree(lambda: all(_lock(run, stack) for run in sorted(runs)))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder, which is made."""
    with contextlib.ExitStack() as stack:
        fcntl.flock(_open(folder, stack), fcntl.LOCK_EX)
        yield


def _lock(run: Path, stack: contextlib.ExitStack) -> bool:
    try:
        fcntl.flock(_open(run, stack), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(folder: Path, stack: contextlib.ExitStack) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, lock)
    return lock
