"""How deep the lists and mappings of a file may lie in one another.

Deeper values are mistakes or attacks. Most code that walks through them, ours and that of
libraries, calls itself once for each level, and Python allows about a thousand such calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LEVELS = 100
TOO_DEEP = "its lists or objects are nested too deeply"
# YAML's aliases can repeat a value so often that no memory holds the repeats.
MOST_AT_A_LEVEL = 100_000


def is_too_deep(value: Any) -> bool:
    """Whether lists and mappings lie more than `LEVELS` deep, or are too many at a level.

    >>> is_too_deep([[], {"a": [1]}])
    False
    """
    level = [value]
    for _ in range(LEVELS):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level or len(level) > MOST_AT_A_LEVEL:
            return bool(level)
    return True


def _inner(value: Any) -> Iterable[Any]:
    """The lists and mappings directly within a value."""
    if not isinstance(value, list | dict):
        return []
    within = value.values() if isinstance(value, dict) else value
    return [each for each in within if isinstance(each, list | dict)]
