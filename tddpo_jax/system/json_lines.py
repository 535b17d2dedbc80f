"""JSON lines: errors of reading name the row, and appending survives a kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import pydantic

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import parse, problem, whole_lines


class Row(pydantic.BaseModel):
    """One line of a file. Unknown keys belong to other programs and are ignored."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


RowT = TypeVar("RowT", bound=Row)


def read_rows(path: str | Path, kind: type[RowT]) -> list[RowT]:
    """The rows of a JSON-lines file, each validated as `kind`.

    If the last line has no newline and is not JSON, a kill cut it off. It is left out with a
    warning.

    Raises:
        UserError: the file cannot be read, or a row is not a `kind`. The message names the file,
            the row and the field.
    """
    try:
        lines, torn = whole_lines(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if torn:
        warnings.warn(f"{path}: the last line is cut off and is left out", stacklevel=2)
    return [_row(path, number, line, kind) for number, line in enumerate(lines, 1) if line.strip()]


def _row(path: str | Path, number: int, line: bytes, kind: type[RowT]) -> RowT:
    try:
        return kind.model_validate(parse(line))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "model_type":
            raise UserError(f"{path}, row {number}: must be an object") from None
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__.lower()
        raise UserError(f"{path}, row {number}: {name}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"{path}, row {number}: {problem(error)}") from None


@contextlib.contextmanager
def appending(path: str | Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that appends one row and hands it to the operating system at once.

    A missing file and its folder are made. A last line that was cut off is removed first. A killed
    program therefore loses the row that it was writing, and no other.

    Raises:
        UserError: another process is appending to the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing to this file") from None
        _repair(file, path)

        def append(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()

        yield append


def _repair(file: IO[bytes], path: Path) -> None:
    file.seek(0)
    content = file.read()
    lines, torn = whole_lines(content)
    if torn:
        file.truncate(len(content) - len(torn))
        warnings.warn(f"{path}: removed a cut-off last line of {len(torn)} bytes", stacklevel=3)
    elif lines[-1]:
        file.write(b"\n")
        file.flush()
