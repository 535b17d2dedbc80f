"""Rows that a program gives in memory, kept as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import cache_folder


def save_rows(rows: Iterable[Any]) -> Path:
    """Writes rows into the cache, and returns the file; equal rows have one file.

    Args:
        rows: a list of mappings, or a `datasets.Dataset`.

    Raises:
        UserError: there are no rows, or a row is not a mapping of JSON values.
    """
    text = "".join(_line(number, row) for number, row in enumerate(rows))
    if not text:
        raise UserError("data: there are no rows")
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = cache_folder() / "rows" / f"{digest[:32]}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return file


def _line(number: int, row: Any) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"data: row {number} must be a mapping, got {type(row).__name__}")
    try:
        return json.dumps(dict(row), ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"data: row {number} is not JSON: {error}") from None
