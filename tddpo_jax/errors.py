"""What the user did wrong."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is wrong: a setting, a file or a row of it.

    Its message is one line that names it. Commands print that line and end with status 2; every
    other exception is a fault of ours and keeps its traceback.
    """
