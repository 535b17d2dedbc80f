"""Files of rows: JSON, JSON lines, CSV and Parquet, alone or as many as a pattern matches."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from io import BufferedReader, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system.json_files import parse, problem

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED = ".gz"  # may follow the suffix of a file of text


def suffix(path: Path) -> str:
    """What a file's name says it holds, compressed or not."""
    return Path(path.stem).suffix if path.suffix == COMPRESSED else path.suffix


def is_pattern(path: str | Path) -> bool:
    """Whether a path stands for the files that match it."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def matching_files(pattern: str | Path) -> list[Path]:
    """The files that match a pattern, by name.

    Raises:
        UserError: no file matches.
    """
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise UserError(f"data {pattern}: no file matches")
    return files


def read_file(file: Path) -> list[Any]:
    """The rows of a file as they stand there.

    Raises:
        UserError: the file cannot be read, or is not what its suffix says.
    """
    try:
        if suffix(file) == ".jsonl":
            return list(_json_lines(file))
        if suffix(file) == ".json":
            return _json_list(file)
        if suffix(file) == ".csv":
            return _csv(file)
        if file.suffix == ".parquet":
            return _parquet(file)
    except UnicodeDecodeError:
        raise UserError(f"data {file}: is no UTF-8 text") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"data {file}: the compressed file is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"data {file}: {one_line(error)}") from None
    raise UserError(
        f"data {file}: unknown suffix; known are {', '.join(SUFFIXES)}, and {COMPRESSED} behind "
        "those of text"
    )


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table without the nulls within their cells.

    All objects of a column have the same keys in a table, and null where one lacks a key.
    """
    return [{name: _without_nulls(cell) for name, cell in row.items()} for row in rows]


def _without_nulls(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {key: _without_nulls(part) for key, part in cell.items() if part is not None}
    return [_without_nulls(part) for part in cell] if isinstance(cell, list) else cell


def _open(file: Path, newline: str | None = None) -> TextIOWrapper:
    read = gzip.GzipFile if file.suffix == COMPRESSED else FileIO
    return TextIOWrapper(BufferedReader(read(file)), encoding="utf-8-sig", newline=newline)


def _json_lines(file: Path) -> Iterator[Any]:
    # Only a line feed ends a line: str.splitlines would also split at U+2028 and its like, which
    # may stand raw in a JSON text.
    with _open(file, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield parse(line)
            except ValueError as error:
                raise UserError(f"data {file} line {number}: {problem(error)}") from None


def _json_list(file: Path) -> list[Any]:
    with _open(file) as opened:
        text = opened.read()
    if not text.strip():
        return []
    try:
        value = parse(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # many a .json file holds JSON lines
            return list(_json_lines(file))
        raise UserError(f"data {file} line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"data {file}: {problem(error)}") from None
    if isinstance(value, dict):
        lists = [value[key] for key in ("rows", "data") if isinstance(value.get(key), list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise UserError(f"data {file}: must be a list, or an object with one as `rows` or `data`")
    return value


def _csv(file: Path) -> list[Any]:
    csv.field_size_limit(sys.maxsize)  # else a conversation may be too long for a cell
    with _open(file, newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows: list[dict[str, Any]] = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"data {file} line {reader.line_num}: has another number of cells than "
                        "the first line has columns"
                    )
                rows.append(dict(row))
        except csv.Error as error:
            line = reader.reader.line_num
            raise UserError(f"data {file} line {line}: not CSV: {error}") from None
    return rows


def _parquet(file: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return table_rows(pyarrow.parquet.read_table(file).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"data {file}: not Parquet: {one_line(error)}") from None
