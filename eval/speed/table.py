"""Figures as text: one thing measured as a list of lines, several as a table; and what they are of."""

from __future__ import annotations

import os
from typing import Any

import jax

from tddpo_jax.preparation import git_commit


def facts() -> dict[str, Any]:
    """What figures depend on beside their settings: commit, device, versions, other load."""
    return {
        "commit": git_commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        # Of the last minute, before anything was measured: above 0 others were at work.
        "load_before": os.getloadavg()[0],
    }


def table(about: dict[str, Any], rows: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """Figures for a reader; lists, which the JSON has, are left out.

    Args:
        about: facts of all rows.
        rows: the figures, with any names.
        markdown: a table of Markdown under a line of facts, in place of aligned columns.
    """
    rows = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    head = ", ".join(f"{name} {_text(value)}" for name, value in about.items())
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    if markdown:
        lines = [columns, ["---"] * len(columns), *cells]
        return "\n".join([head, "", *("| " + " | ".join(line) + " |" for line in lines)])
    if len(rows) == 1:
        lines = [[name, cell] for name, cell in zip(columns, cells[0], strict=True)]
    else:
        lines = [columns, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([head, *aligned])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
