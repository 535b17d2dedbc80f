"""Runs a command, and turns a mistake, an interruption or a full disk into an exit status."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system import hosts
from tddpo_jax.system.agreement import several
from tddpo_jax.system.xla_flags import set_flags

# The kernel's words for a full disk. `OSError`, Orbax and safetensors all repeat them.
DISK_IS_FULL = ("No space left on device", "Disk quota exceeded")
# A file or folder that this user must not write to, or read.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def run_command(
    command: Callable[[Sequence[str]], int], arguments: Sequence[str], *, resumes: bool
) -> int:
    """Runs a command and returns its exit status; a `UserError` becomes one line and status 2.

    Args:
        command: takes the arguments and returns an exit status.
        arguments: the arguments of the command line.
        resumes: whether the same command resumes its work after an interruption.
    """
    warnings.showwarning = _one_line_warning
    # When transformers is imported, it warns where PyTorch is not installed. No command needs
    # PyTorch. Commands import transformers late, after this.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    set_flags()
    try:
        return command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        status = _told(error, resumes)
        if several():
            hosts.leave(error, status)
        if status is None:
            raise
        return status


def _told(error: BaseException, resumes: bool) -> int | None:
    """Reports a mistake, an interruption or a full disk; returns the exit status, else None."""
    if isinstance(error, KeyboardInterrupt):
        told = "interrupted; the same command resumes" if resumes else "interrupted"
        print(told, file=sys.stderr)
        return 130
    if any(text in str(error) for text in DISK_IS_FULL):
        told = f"error: the disk is full: {one_line(error)[:300]}"
        print(told + ("; the same command resumes" if resumes else ""), file=sys.stderr)
        return 1
    if isinstance(error, UserError):
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return None


def _one_line_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)
