"""Damages files: cut short, with other bytes, with odd values in their JSON."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError

# Values that a JSON file may hold where a program expects something else.
ODD: tuple[Any, ...] = (None, True, 0, -1, 0.5, 1e308, 2**70, "", "x", "\ud800", [], [[]], {}, [{}])
DEEP = "[" * 1200 + "]" * 1200
FLIPS = (0x00, 0x0A, 0x22, 0x7B, 0xFF)


def survives(read: Callable[[], object]) -> bool:
    """Reads what may be damaged: a usable result or a `UserError` of one line, nothing else.

    Returns:
        Whether there was a result.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except UserError:
            return False
    return True


def truncations(content: bytes, step: int = 1) -> Iterator[bytes]:
    """The content cut off at every byte, or at every one of so many."""
    return (content[:end] for end in range(0, len(content), step))


def flips(content: bytes, step: int = 1) -> Iterator[bytes]:
    """The content with one byte replaced, at every place, or at every one of so many."""
    for place in range(0, len(content), step):
        for byte in FLIPS:
            yield content[:place] + bytes([byte]) + content[place + 1 :]


def odd_values(value: Any) -> Iterator[Any]:
    """Copies of a JSON value in which one part is odd or missing."""
    yield from ODD
    for path in _paths(value):
        for odd in ODD:
            yield _with(value, path, odd)
        yield _without(value, path)


def odd_json(text: str | bytes) -> Iterator[bytes]:
    """The JSON texts of `odd_values`, and some that are nested beyond measure."""
    value = json.loads(text)
    for odd in odd_values(value):
        yield json.dumps(odd).encode()
    for path in _paths(value):
        marked = json.dumps(_with(value, path, "@deep@"))
        yield marked.replace('"@deep@"', DEEP).encode()


def read_damaged(
    file: Path, contents: Iterator[bytes], read: Callable[[], object]
) -> tuple[int, int]:
    """Writes each content into the file and reads it with `survives`; the file is whole again then.

    Returns:
        How many contents gave a result, and how many there were.
    """
    whole = file.read_bytes()
    usable = tried = 0
    with contextlib.ExitStack() as stack:
        stack.callback(file.write_bytes, whole)
        for content in contents:
            file.write_bytes(content)
            tried += 1
            try:
                usable += survives(read)
            except Exception as error:
                error.add_note(f"{file.name} held {content[:300]!r}")
                raise
    return usable, tried


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all parts of a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*before, key)
            yield from _paths(value[key], (*before, key))


def _with(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    changed, holder = _copied(value, path)
    holder[path[-1]] = part
    return changed


def _without(value: Any, path: tuple[Any, ...]) -> Any:
    changed, holder = _copied(value, path)
    del holder[path[-1]]
    return changed


def _copied(value: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    """A copy of a value, and in it what holds the part at a place."""
    changed = holder = copy.deepcopy(value)
    for key in path[:-1]:
        holder = holder[key]
    return changed, holder
