"""The rates of a disk for plain files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

BLOCK = 2**24  # bytes written or read at once


def to_disk(file: Path) -> None:
    """Waits until a file is on the disk, and asks the kernel to forget its pages."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rates(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of writing and of reading one plain file of `size` bytes."""
    file, block = folder / "rate", np.random.default_rng(0).bytes(BLOCK)
    start = time.perf_counter()
    with file.open("wb") as stream:
        for _ in range(-(-size // BLOCK)):
            stream.write(block)
    to_disk(file)
    written = time.perf_counter()
    buffer = bytearray(BLOCK)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    read = time.perf_counter()
    size = file.stat().st_size
    file.unlink()
    return size / (written - start), size / (read - written)
