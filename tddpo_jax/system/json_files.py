"""Reads JSON files that may be damaged; an error is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from tddpo_jax.errors import UserError


class Content(pydantic.BaseModel):
    """The fields that a JSON file must hold; other fields of the file are kept."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True, protected_namespaces=())


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
        value = json.loads(file.read_bytes(), object_pairs_hook=_distinct)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except KeyError as error:
        raise UserError(f"{file}: duplicate key {error.args[0]}") from None
    except ValueError:
        raise UserError(f"{file}: not JSON") from None
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
        json.loads(text)
    except ValueError:
        return False
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise KeyError(name)
        names[name] = value
    return names
