"""Figures as text, and the facts that they depend on: commit, device, load."""

from __future__ import annotations

import os
from typing import Any

import jax

from tddpo_jax.system.devices import GIB
from tddpo_jax.system.source import git_commit


def facts() -> dict[str, Any]:
    """The facts that figures depend on besides settings: commit, device, versions, other load."""
    return {
        "commit": git_commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        # The load of the last minute before measuring. Above 0, other programs were at work.
        "load_before": os.getloadavg()[0],
    }


# The figures that a table shows. The JSON has more.
COLUMNS = {
    "suite": (
        *("part", "step_seconds", "pairs_per_second", "tokens_per_second", "useful_tflops"),
        *("useful_share", "padding_share", "row_length", "peak_gib", "remark"),
    ),
    "against": (
        *("peer", "peer_settings", "peer_micro_batch", "mode", "our_pairs_per_second"),
        *("peer_pairs_per_second", "times_faster", "reference_seconds", "useful_share"),
        *("padding_share", "our_first_loss", "peer_first_loss", "our_last_loss", "peer_last_loss"),
    ),
}


def table(about: dict[str, Any], rows: list[dict[str, Any]], *, markdown: bool = False) -> str:
    """The figures as text: one row as a list, several rows as a table.

    Args:
        about: the facts of all rows. `speed` is the mode.
        rows: the figures.
        markdown: whether to make a Markdown table under a line of facts. By default columns are
            aligned.
    """
    head = ", ".join(f"{name} {_text(value)}" for name, value in about.items())
    rows = [_readable(row) for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in COLUMNS.get(about["speed"], columns) if name in columns]
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


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without lists, with bytes as GiB, and with a failure as its remark."""
    row = {name: value for name, value in row.items() if not isinstance(value, (list, dict))}
    if row.get("failed"):
        row["remark"] = f"FAILED: {row['failed']}"
    if "peak_bytes" in row:
        row["peak_gib"] = row.pop("peak_bytes") / GIB
    return row


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
