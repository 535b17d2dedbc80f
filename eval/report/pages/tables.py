"""A table of the page: rows of text, some with links, some highlighted."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Link(NamedTuple):
    """Text that links to a file, by its address relative to the page; `path` can be copied."""

    text: str
    address: str
    path: str


Entry = str | Link


@dataclasses.dataclass
class Table:
    """Rows of entries under a head.

    Attributes:
        caption: what the table shows, and how.
        highlighted: numbers of the rows to look at first.
        sortable: whether a click on a column's head sorts the rows.
    """

    caption: str
    head: list[str]
    rows: list[list[Entry]]
    highlighted: set[int] = dataclasses.field(default_factory=set)
    sortable: bool = False
