"""Files and folders that appear whole or not at all, however the process that writes them ends.

What is written lies beside its place under another name and is renamed into it. A rename cannot put
a folder in the place of one that holds files, so the old folder is renamed away first and deleted
last. A process that is killed between the two renames leaves the old folder under its other name:
`standing` finds it there, and `recover` puts it back.

This holds for a process that ends, not for a machine that loses power: nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# What has this suffix was never whole, and nobody misses it.
PARTIAL = ".partial"
# What has this one is whole, and may be the only copy.
REPLACED = ".replaced"


@contextlib.contextmanager
def write_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a stream; the file at `path` is replaced when the block ends without an error.

    Several processes may write the same file at once: the last one wins.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as stream:
            yield stream
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` by this text in UTF-8."""
    with write_file(path) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder; it takes the place of `folder` when the block ends without an error.

    One process at a time may do this to the same folder.
    """
    recover(folder)
    partial, replaced = _beside(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undoes what a killed `replace_folder` of this folder left; nobody may be replacing it now."""
    partial, replaced = _beside(folder)
    if not folder.exists() and replaced.exists():
        replaced.rename(folder)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)


def standing(folder: Path) -> Path:
    """Where the folder's files are: in its place, or under the other name that a kill left them.

    Changes nothing, since another process may be replacing the folder just now.
    """
    _, replaced = _beside(folder)
    return replaced if not folder.exists() and replaced.exists() else folder


def _beside(folder: Path) -> tuple[Path, Path]:
    """What the new folder is called until it is whole, and the old one until it is deleted."""
    return folder.with_name(folder.name + PARTIAL), folder.with_name(folder.name + REPLACED)
