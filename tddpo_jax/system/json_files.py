"""Reads JSON that may be damaged; an error of a file is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from tddpo_jax.config.nesting import LEVELS, TOO_DEEP, is_too_deep
from tddpo_jax.errors import UserError, one_line


class Content(pydantic.BaseModel):
    """The fields that a JSON file must hold; other fields of the file are kept."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Refused(ValueError):
    """A text is JSON, and is not taken."""


def parse(text: str | bytes, *, distinct_keys: bool = False) -> Any:
    """The value of a JSON text. All JSON that people give us is read here.

    Args:
        text: the text, or its bytes in UTF-8, UTF-16 or UTF-32.
        distinct_keys: whether an object that has a key twice is an error.

    Raises:
        ValueError: it is not JSON; or `Refused`: it is nested too deeply or has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_distinct if distinct_keys else None)
    except RecursionError:
        raise Refused(TOO_DEEP) from None
    if _brackets(text) > LEVELS and is_too_deep(value):
        raise Refused(TOO_DEEP)
    return value


def _brackets(text: str | bytes) -> int:
    """How many lists and objects may begin in a text. With few, it need not be looked into."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def problem(error: ValueError) -> str:
    """What `parse` found wrong with a text, in one line."""
    if isinstance(error, Refused):
        return str(error)
    return f"not JSON: {error.msg if isinstance(error, json.JSONDecodeError) else one_line(error)}"


ContentT = TypeVar("ContentT", bound=pydantic.BaseModel)


def read_as(file: Path, kind: type[ContentT]) -> ContentT:
    """The object in a JSON file, checked against a schema.

    Args:
        file: the file.
        kind: the schema.

    Raises:
        UserError: the file cannot be read, is not JSON, or a field of it is missing or wrong.
    """
    try:
        return kind.model_validate(read_object(file))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file}: {field}: {problem['msg']}") from None


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file cannot be read, is not JSON, is not an object, or has a key twice.
    """
    try:
        value = parse(file.read_bytes(), distinct_keys=True)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: {problem(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object")
    return value


def whole_lines(text: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a growing file of JSON lines, and its torn last line.

    The last line is torn if it has no newline and is not JSON: its writer was killed or is still
    writing. If no line is torn, the second result is empty.
    """
    *lines, last = text.split(b"\n")
    return (lines, last) if last.strip() and not _is_json(last) else ([*lines, last], b"")


def _is_json(text: bytes) -> bool:
    try:
        parse(text)
    except Refused:
        return True
    except ValueError:
        return False
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise Refused(f"duplicate key {name}")
        names[name] = value
    return names
