"""The shapes that a row of the data may have."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from tddpo_jax.errors import UserError


class ParsedRow(NamedTuple):
    """A row whose shape is understood."""

    kind: Literal["chat", "text", "ids"]
    prompt: Any  # list of {role, content}; text; list of token ids
    responses: tuple[Any, ...]  # text; text; list of token ids, each


def response_columns(row: dict[str, Any]) -> tuple[str, ...]:
    """The columns of a row that hold its responses, one column for each.

    A row may have columns of several shapes: a shape of token ids counts before one of texts, a
    pair before a single response, and `messages` before `completion`. A row without any of them
    ought to have been a pair.
    """
    present = {name for name, value in row.items() if value is not None}
    if present & {"prompt_ids", "chosen_ids", "rejected_ids", "response_ids"}:
        single = "response_ids" in present and not present & {"chosen_ids", "rejected_ids"}
        return ("response_ids",) if single else ("chosen_ids", "rejected_ids")
    if not present & {"chosen", "rejected"}:
        for column in ("messages", "completion"):
            if column in present:
                return (column,)
    return ("chosen", "rejected")


def parse_row(row: dict[str, Any], where: str) -> ParsedRow | str:
    """What a row says, or the reason why it cannot be used.

    Args:
        row: the columns.
        where: names the row in errors.

    Raises:
        UserError: it lacks a column, or a column has the wrong type.
    """
    columns = response_columns(row)
    parsed: ParsedRow | str
    if columns[0].endswith("_ids"):
        prompt, *responses = (_ids(row, name, where) for name in ("prompt_ids", *columns))
        parsed = ParsedRow("ids", prompt, tuple(responses))
    else:
        parsed = _parse_texts(row, columns, where)
    if isinstance(parsed, str):
        return parsed
    if _is_empty(parsed.prompt):
        return "empty prompt"
    if any(map(_is_empty, parsed.responses)):
        return "empty response"
    return parsed if _is_unicode(parsed) else "half a surrogate pair"


def _parse_texts(row: dict[str, Any], columns: tuple[str, ...], where: str) -> ParsedRow | str:
    if all(row.get(name) is None for name in columns):
        raise UserError(
            f"{where}: lacks the column {columns[0]!r}, or for a single response 'messages' or "
            "'completion'"
        )
    responses = tuple(_column(row, name, where) for name in columns)
    if "messages" in columns or not all(isinstance(response, str) for response in responses):
        return _parse_conversations(row, columns, where)
    prompt = _column(row, "prompt", where)
    if isinstance(prompt, str):
        return ParsedRow("text", prompt, responses)
    return ParsedRow("chat", _messages(prompt, "prompt", where), responses)


def _parse_conversations(
    row: dict[str, Any], columns: tuple[str, ...], where: str
) -> ParsedRow | str:
    prompt = row.get("prompt")
    branches = {name: _messages(row[name], name, where) for name in columns}
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
    first, *others = (messages[:-1] for messages in branches.values())
    if any(history != first for history in others):
        return "differing histories"
    answers = tuple(messages[-1]["content"] for messages in branches.values())
    return ParsedRow("chat", first, answers)


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


def _is_unicode(row: ParsedRow) -> bool:
    """False for a text cut in the middle of an emoji's escape, which no tokenizer takes."""
    if row.kind == "ids":
        return True
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
