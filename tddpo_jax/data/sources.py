"""Rows of data: where they are read from, and which shapes they may have.

A row of a preference pair has one of these shapes:

*   `chosen`, `rejected`: conversations, lists of messages that share all but their last one
    (dpo-mix-7k, UltraFeedback), or all but an agent's way to it: calls and what the tools gave. The
    loss then counts the assistant's messages. A `prompt` text beside them counts only where the
    lists hold nothing but the answers.
*   `prompt`, a conversation, and `chosen`, `rejected`: its continuations, lists or texts (TRL).
    Where the prompt ends with the assistant's first words, the answers continue them. A
    conversation that repeats the prompt is taken as it is.
*   `conversations` in the place of `prompt`, with messages of `{from, value}` (ShareGPT).
*   `prompt`, `chosen`, `rejected`: texts, taken verbatim, without a template (TRL).
*   `chosen`, `rejected`: texts of whole conversations (hh-rlhf). The prompt is their common
    beginning, up to the heading of the assistant's last turn, and all is taken verbatim.
*   `prompt_ids`, `chosen_ids`, `rejected_ids`: token ids, taken verbatim, nothing added.

A row of one response has one of these:

*   `messages`, or `conversations`: a conversation whose last message is the response.
*   `prompt`, `completion`: texts, or a conversation and its continuation, as above (TRL).
*   `instruction` and `output`, or `response` (alpaca-cleaned, databricks-dolly-15k); `question` and
    `answer`, or `response` (gsm8k); `problem`, `solution` (MATH): texts. They become a message of
    the user and one of the assistant. What `input` or `context` says stands behind the question,
    with an empty line between.
*   `prompt_ids`, `response_ids`: token ids, as above.

Two columns may stand beside conversations. `tools` goes to the chat template. `system` (or
`system_prompt`) becomes the first message; it stands before a prompt of text, with an empty line
between. `messages` says how a message may look. A conversation may be stored as JSON in a text.

All rows of a source have the same number of responses. A row that has the columns of a pair is a
pair, whatever other columns it has. What nothing reads is named where the data is described.

A row that cannot be used is kept as the reason why. Rows count from 0, lines of a file from 1.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tddpo_jax.data.dataset_folders import id_and_revision, rows_of, splits_of
from tddpo_jax.data.formats import (
    UNDERSTOOD,
    ParsedRow,
    columns_read,
    parse_row,
    response_columns,
    shape,
)
from tddpo_jax.data.messages import keys_not_read
from tddpo_jax.data.row_files import SUFFIXES, is_pattern, matching_files, read_file, suffix
from tddpo_jax.errors import UserError
from tddpo_jax.system.hub import DATA_SET_ID
from tddpo_jax.system.paths import EMBEDDED


class Source(NamedTuple):
    """The rows of one file or split, each understood, or the reason why it cannot be used."""

    name: str
    rows: list[ParsedRow | str]
    numbers: list[int]  # of these rows in the file or split
    responses: int  # of each row
    shape: str  # of the first row, in words
    not_read: str  # columns and keys of messages that nothing reads, in words


def read_source(
    path: str | Path,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
    """The rows of a data source, as in `read_rows`, with their shapes understood.

    Raises:
        UserError: as in `read_rows`, or no row has a shape that is understood.
    """
    name, rows = named_rows(path, split, config, columns)
    parsed = _alike([parse_row(row) for row in rows])
    if not any(isinstance(row, ParsedRow) or row in UNDERSTOOD for row in parsed):
        reasons: dict[str, list[int]] = collections.defaultdict(list)
        for index, row in enumerate(parsed):
            reasons[str(row)].append(index)
        raise UserError(none_usable("data", name, reasons, shape(rows[0])))
    both = zip(rows, parsed, strict=True)
    used = [row for row, what in both if isinstance(what, ParsedRow)]
    not_read = "" if str(path) == "embedded" else _not_read(used)
    counts = (len(row.responses) for row in parsed if isinstance(row, ParsedRow))
    responses = next(counts, len(response_columns(rows[0])))
    numbers = list(range(len(parsed)))
    return Source(name, parsed, numbers, responses, shape(rows[0]), not_read)


def named_rows(
    path: str | Path,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """The name of a data source, and its rows as in `read_rows` with our names of columns.

    Raises:
        UserError: as in `read_rows`, or a row lacks a column of `columns`.
    """
    parts = ", ".join(part for part in (config, split) if part)
    name = f"{path} ({parts})" if parts else str(path)
    return name, [_renamed(name, row, columns or {}) for row in read_rows(path, split, config)]


def none_usable(field: str, name: str, reasons: Mapping[str, Sequence[int]], found: str) -> str:
    """The message for a source without a usable row: reasons with rows, and what the first holds.

    Args:
        field: the setting that names the source.
        name: of the source.
        reasons: each with the numbers of its rows.
        found: the columns of row 0, from `formats.shape`.
    """
    counts = (
        f"{len(rows)} x {reason} ({'row' if len(rows) == 1 else 'first row'} {rows[0]})"
        for reason, rows in reasons.items()
    )
    return f"{field} {name}: none of its rows can be used: {', '.join(counts)}; row 0 has {found}"


def number_of_responses(count: int) -> str:
    """`1 response`, `2 responses`."""
    return f"{count} response{'s' if count > 1 else ''}"


def read_rows(
    path: str | Path, split: str | None = None, config: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a data source as they stand there.

    Args:
        path: `embedded`; a file: JSON lines in `.jsonl`, a list (or an object with a list under
            `rows` or `data`) in `.json`, a table in `.csv` or `.parquet`, where the texts may be
            compressed, as in `.jsonl.gz`; a pattern such as `folder/*.jsonl`; a folder that
            `save_to_disk` wrote; or what `datasets.load_dataset` takes, a folder or a hub id, with
            a revision as in `owner/name@revision`.
        split: of a source that has several; default `train`.
        config: of a hub id or folder that has several.

    Raises:
        UserError: one line that names the source, and the line or row.
    """
    name = str(path)
    if name == "embedded":
        if (split or "train") not in ("train", "validation"):
            raise UserError(f"data.split: embedded has train and validation, not {split!r}")
        rows = read_file(EMBEDDED / f"{split or 'train'}.jsonl")
    elif _is_files(Path(path)):
        if split not in (None, "train") or config is not None:
            raise UserError(f"data.{'config' if config else 'split'}: {name} is a file, with none")
        files = matching_files(path) if is_pattern(path) else [Path(path)]
        rows = [row for file in files for row in read_file(file)]
    else:
        rows = rows_of(name, split, config)
    if not rows:
        raise UserError(f"data {name}: holds no rows")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"data {name} row {index}: must be an object with columns")
    return rows


def split_names(path: str | Path, config: str | None = None) -> list[str]:
    """The splits of a data source; a file is one split, `train`.

    Raises:
        UserError: there is no such source.
    """
    if str(path) == "embedded":
        return ["train", "validation"]
    return ["train"] if _is_files(Path(path)) else splits_of(str(path), config)


def names_files(path: str) -> bool:
    """Whether a text names a file or a pattern of files, which need not be there."""
    return suffix(Path(path)) in SUFFIXES or Path(path).is_file()


def _is_files(path: Path) -> bool:
    """Whether a path is a file or a pattern of files, rather than a folder or a hub id.

    Raises:
        UserError: it is nothing of the kind.
    """
    if path.is_file() or path.is_dir():
        return path.is_file()
    if is_pattern(path):
        return True
    hub_id, _ = id_and_revision(str(path))
    if suffix(path) in SUFFIXES or not DATA_SET_ID.fullmatch(hub_id):
        raise UserError(f"data {path}: no such file")
    return False


# ---- rows ----------------------------------------------------------------------------------------


def _renamed(name: str, row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row whose columns have the names that we read."""
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(
                f"data.columns: {name} has no column {theirs!r} for {ours!r}; "
                f"it has {', '.join(row)}"
            )
    others = {key: value for key, value in row.items() if key not in columns.values()}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _alike(rows: list[ParsedRow | str]) -> list[ParsedRow | str]:
    """Rows of one number of responses: the commonest. The others become reasons."""
    counts = collections.Counter(len(row.responses) for row in rows if not isinstance(row, str))
    if len(counts) < 2:
        return rows
    wanted = max(counts, key=lambda count: (counts[count], count))
    return [
        row
        if isinstance(row, str) or len(row.responses) == wanted
        else f"{number_of_responses(len(row.responses))}, where most rows have {wanted}"
        for row in rows
    ]


def _not_read(rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns of rows, and the keys of their messages, that nothing reads."""
    columns: set[str] = set()
    keys: set[str] = set()
    for row in rows:
        read = columns_read(row)
        columns |= {column for column, value in row.items() if value is not None} - read
        for column in read:
            value = row.get(column)
            for message in value if isinstance(value, list) else [value]:
                if isinstance(message, dict) and message.keys() & {"role", "from"}:
                    keys |= keys_not_read(message)
    found = [("columns", columns), ("keys of messages", keys)]
    return " and ".join(f"{what} {', '.join(sorted(names))}" for what, names in found if names)
