"""The shapes that a row of preference data may have."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from tddpo_jax.errors import UserError

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class Example(NamedTuple):
    """A row whose shape is understood."""

    kind: Literal["chat", "text", "ids"]
    prompt: Any  # list of {role, content}; text; list of token ids
    chosen: Any  # text; text; list of token ids
    rejected: Any


def parse_row(row: dict[str, Any], where: str) -> Example | str:
    """What a row says, or the reason why it cannot be used.

    Args:
        row: the columns.
        where: names the row in errors.

    Raises:
        UserError: it lacks a column, or a column has the wrong type.
    """
    if any(row.get(column) is not None for column in ID_COLUMNS):
        example: Example | str = Example("ids", *(_ids(row, name, where) for name in ID_COLUMNS))
    else:
        example = _parse_texts(row, where)
    if isinstance(example, str):
        return example
    if _is_empty(example.prompt):
        return "empty prompt"
    if _is_empty(example.chosen) or _is_empty(example.rejected):
        return "empty response"
    return example if _is_unicode(example) else "half a surrogate pair"


def _parse_texts(row: dict[str, Any], where: str) -> Example | str:
    chosen, rejected = (_column(row, name, where) for name in ("chosen", "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return _parse_conversations(row, where)
    prompt = _column(row, "prompt", where)
    if isinstance(prompt, str):
        return Example("text", prompt, chosen, rejected)
    return Example("chat", _messages(prompt, "prompt", where), chosen, rejected)


def _parse_conversations(row: dict[str, Any], where: str) -> Example | str:
    prompt = row.get("prompt")
    branches = {name: _messages(row[name], name, where) for name in ("chosen", "rejected")}
    if not all(branches.values()):
        return "empty response"
    before = [] if prompt is None or isinstance(prompt, str) else _messages(prompt, "prompt", where)
    if isinstance(prompt, str) and all(len(messages) == 1 for messages in branches.values()):
        before = [{"role": "user", "content": prompt}]
    for name, messages in branches.items():
        if (role := messages[-1]["role"]) != "assistant":
            raise UserError(f"{where}: the last role of {name!r} is {role!r}, not 'assistant'")
        if messages[: len(before)] != before:  # a whole conversation repeats its prompt
            branches[name] = [*before, *messages]
    chosen, rejected = branches.values()
    if chosen[:-1] != rejected[:-1]:
        return "differing histories"
    return Example("chat", chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def _column(row: dict[str, Any], column: str, where: str) -> Any:
    if row.get(column) is None:  # a table holds null where a row lacks a column
        raise UserError(f"{where}: lacks the column {column!r}")
    return row[column]


def _messages(value: Any, column: str, where: str) -> list[dict[str, str]]:
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        messages = [{key: message.get(key) for key in ("role", "content")} for message in value]
        if all(isinstance(text, str) for message in messages for text in message.values()):
            return messages
    raise UserError(f"{where}: {column!r} must be a list of {{role, content}}, both texts")


def _ids(row: dict[str, Any], column: str, where: str) -> list[int]:
    ids = _column(row, column, where)
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise UserError(f"{where}: {column!r} must be a list of integers")
    if any(not 0 <= i < 2**31 for i in ids):
        raise UserError(f"{where}: {column!r} holds a number that is no token id")
    return ids


def _is_empty(value: list[Any] | str) -> bool:
    """Nothing, only white space, or a conversation that ends with such a message."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1]["content"]
    return not (value.strip() if isinstance(value, str) else value)


def _is_unicode(example: Example) -> bool:
    """False for a text cut in the middle of an emoji's escape, which no tokenizer takes."""
    if example.kind == "ids":
        return True
    try:
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
