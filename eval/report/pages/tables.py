"""A table of the page: rows of text, some with links, some highlighted."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple


class Link(NamedTuple):
    """Text that links to a file, by its address relative to the page."""

    text: str
    address: str


Entry = str | Link | list[Link]


@dataclasses.dataclass
class Table:
    """Rows of entries under a head.

    Attributes:
        caption: what the table shows, and how.
        highlighted: numbers of the rows to look at first.
        kind: `sortable` if a click on a column's head sorts the rows, or `claims`.
    """

    caption: str
    head: list[str]
    rows: list[list[Entry]]
    highlighted: set[int] = dataclasses.field(default_factory=set)
    kind: Literal["", "sortable", "claims"] = ""
