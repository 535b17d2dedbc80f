"""The exception for a user's mistakes."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is wrong: a setting, a file, or a row of a file.

    The message is one line that names the setting, file or row. A command prints that line and
    ends with status 2. Every other exception is our own fault and keeps its traceback.
    """


def one_line(message: object) -> str:
    """The message in one line: single spaces stand for its white space."""
    return " ".join(str(message).split())
