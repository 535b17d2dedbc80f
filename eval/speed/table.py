"""Figures as text for a reader, and what they are of: commit, device, load."""

from __future__ import annotations

import os
from typing import Any

import jax

from tddpo_jax.system.devices import GIB
from tddpo_jax.training.run_facts import git_commit


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


# Of all figures, those that a table shows; of others the JSON has more.
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
    """Figures for a reader: one row's below each other, several rows' as a table.

    Args:
        about: facts of all rows, `speed` among them, the mode.
        rows: the figures.
        markdown: a table of Markdown under a line of facts, in place of aligned columns.
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
    """A row without its lists, bytes as GiB, and a failure as its remark."""
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
