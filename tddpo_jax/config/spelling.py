"""Suggests the name that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most alike of the known ones, or nothing.

    >>> did_you_mean("dpoo", ["td_dpo", "dpo", "sft"])
    '; did you mean dpo?'
    >>> did_you_mean("xyz", ["dpo"])
    ''
    """
    # Underscores, hyphens and capitals are the commonest difference.
    spelt = {_plain(name): name for name in names}
    found = difflib.get_close_matches(_plain(word), spelt, n=1)
    return f"; did you mean {spelt[found[0]]}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
