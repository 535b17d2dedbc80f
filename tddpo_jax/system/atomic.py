"""Files and folders that appear whole or not at all, however the process that writes them ends.

A new file or folder is written under another name beside its place, and is then renamed. A rename
cannot replace a folder that holds files. So the old folder is renamed first and deleted last. A
process that is killed between the two renames leaves the old folder under its other name:
`standing` finds it there, and `recover` puts it back.

This protects against the end of a process. It does not protect against a loss of power, because
nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# A file or folder with this suffix was never whole and can be deleted.
PARTIAL = ".partial"
# A folder with this suffix is whole and may be the only copy.
REPLACED = ".replaced"


@contextlib.contextmanager
def write_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a stream; when the block ends without an error, the file at `path` is replaced.

    Several processes may write the same file at once. The last one wins.
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
    """Replaces the content of the file at `path` by this text in UTF-8."""
    with write_file(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces the content of the file at `path` by this JSON object."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder; when the block ends without an error, it replaces `folder`.

    Only one process at a time may replace the same folder.
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
    """Cleans up after a killed `replace_folder`; no process may be replacing the folder now."""
    partial, replaced = _beside(folder)
    if not folder.exists() and replaced.exists():
        replaced.rename(folder)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)


def standing(folder: Path) -> Path:
    """Where the folder's files are: in its place, or under the other name after a kill.

    This changes nothing, because another process may be replacing the folder now.
    """
    _, replaced = _beside(folder)
    return replaced if not folder.exists() and replaced.exists() else folder


def _beside(folder: Path) -> tuple[Path, Path]:
    """The new folder's name until it is whole, and the old folder's name until it is deleted."""
    return folder.with_name(folder.name + PARTIAL), folder.with_name(folder.name + REPLACED)
