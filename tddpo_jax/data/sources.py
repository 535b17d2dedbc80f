"""Rows of data: where they are read from, and which shapes they may have.

A row of a preference pair has one of these shapes; other columns are ignored:

*   `chosen`, `rejected`: conversations, lists of `{role, content}` that share all but their last
    message (dpo-mix-7k, UltraFeedback). A `prompt` text beside them counts only where the lists
    hold nothing but the answers.
*   `prompt`, a conversation, and `chosen`, `rejected`: its continuations, lists or texts (TRL).
*   `prompt`, `chosen`, `rejected`: texts, taken verbatim, without a template (TRL).
*   `prompt_ids`, `chosen_ids`, `rejected_ids`: token ids, taken verbatim, nothing added.

A row of one response has one of these:

*   `messages`: a conversation whose last message is the response.
*   `prompt`, `completion`: texts, or a conversation and its continuation, as above (TRL).
*   `prompt_ids`, `response_ids`: token ids, as above.

All rows of a source have the same number of responses. A row that has the columns of a pair is a
pair, whatever other columns it has.

Rows count from 0, lines of a file from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tddpo_jax.data.formats import ParsedRow, parse_row, response_columns
from tddpo_jax.errors import UserError
from tddpo_jax.system.hub import DATA_SET_ID, NotAtHand
from tddpo_jax.system.paths import EMBEDDED

SUFFIXES = (".json", ".jsonl", ".parquet")


class Source(NamedTuple):
    """The rows of one file or split, each understood, or the reason why it cannot be used."""

    name: str
    rows: list[ParsedRow | str]
    responses: int  # of each row


def read_source(path: str | Path, split: str | None = None) -> Source:
    """The rows of a data source, as in `read_rows`, with their shapes understood.

    Raises:
        UserError: as in `read_rows`; or a row lacks a column, a column has the wrong type, or a row
            has another number of responses than the first one.
    """
    name = f"{path} ({split})" if split else str(path)
    rows = read_rows(path, split)
    parsed = [parse_row(row, f"data {name} row {i}") for i, row in enumerate(rows)]
    counts = [len(response_columns(row)) for row in rows]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise UserError(
                f"data {name} row {index}: has {number_of_responses(count)} and row 0 has "
                f"{number_of_responses(counts[0])}; all rows must have the same number"
            )
    return Source(name, parsed, counts[0])


def number_of_responses(count: int) -> str:
    """`1 response`, `2 responses`."""
    return f"{count} response{'s' if count > 1 else ''}"


def read_rows(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a data source as they stand there.

    Args:
        path: `embedded`; a file: JSON lines in `.jsonl`, a list (or an object with a list under
            `rows` or `data`) in `.json`, a table in `.parquet`; or what `datasets.load_dataset`
            takes, a folder or a hub id.
        split: of a source that has several; default `train`.

    Raises:
        UserError: one line that names the source, and the line or row.
    """
    name, split = str(path), split or "train"
    file = EMBEDDED / f"{split}.jsonl" if name == "embedded" else Path(path)
    rows = _read_file(file) if _is_file(file) else _read_hub(name, split)
    if not rows:
        raise UserError(f"data {name}: holds no rows")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"data {name} row {index}: must be an object with columns")
    return rows


def split_names(path: str | Path) -> list[str]:
    """The splits of a data source; a file is one split, `train`.

    Raises:
        UserError: there is no such source.
    """
    if str(path) == "embedded":
        return ["train", "validation"]
    if _is_file(Path(path)):
        return ["train"]
    import datasets  # takes a second to import, which local files need not pay

    try:
        return datasets.get_dataset_split_names(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _missing(str(path), error) from None


# ---- reading -------------------------------------------------------------------------------------


def _is_file(path: Path) -> bool:
    """A file rather than a folder or a hub id.

    Raises:
        UserError: nothing of the kind.
    """
    if path.is_file() or path.is_dir():
        return path.is_file()
    if path.suffix in SUFFIXES or not DATA_SET_ID.fullmatch(str(path)):
        raise UserError(f"data {path}: no such file")
    return False


def _read_file(file: Path) -> list[Any]:
    try:
        if file.suffix == ".jsonl":
            return list(_json_lines(file))
        if file.suffix == ".json":
            return _json_list(file)
        if file.suffix == ".parquet":
            return _parquet(file)
    except UnicodeDecodeError:
        raise UserError(f"data {file}: is no UTF-8 text") from None
    except OSError as error:
        raise UserError(f"data {file}: {_one_line(error)}") from None
    raise UserError(f"data {file}: unknown suffix; known are {', '.join(SUFFIXES)}")


def _json_lines(file: Path) -> Iterator[Any]:
    # Only a line feed ends a line: str.splitlines would also split at U+2028 and its like, which
    # may stand raw in a JSON text.
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"data {file} line {number}: not JSON: {error.msg}") from None


def _json_list(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8-sig")
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # many a .json file holds JSON lines
            return list(_json_lines(file))
        raise UserError(f"data {file} line {error.lineno}: not JSON: {error.msg}") from None
    if isinstance(value, dict):
        lists = [value[key] for key in ("rows", "data") if isinstance(value.get(key), list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise UserError(f"data {file}: must be a list, or an object with one as `rows` or `data`")
    return value


def _parquet(file: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"data {file}: not Parquet: {_one_line(error)}") from None


def _read_hub(name: str, split: str) -> list[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _missing(name, error) from None


def _missing(name: str, error: Exception) -> UserError:
    kind = UserError if Path(name).exists() else NotAtHand
    return kind(f"data {name}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
