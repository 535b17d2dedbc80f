"""The shapes that a row of the data may have."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tddpo_jax.data.messages import (
    CALLS,
    SYSTEM_ROLES,
    TOOL_ROLES,
    Message,
    UnusableRow,
    is_stored_conversation,
    read_json_list,
    read_messages,
    same,
)
from tddpo_jax.data.questions import (
    ABOUT,
    ANSWERS,
    check_one_pair,
    question_and_answer,
    question_text,
)

IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "response_ids")
# Why a row cannot be used whose shape is understood.
EMPTY_PROMPT, EMPTY_RESPONSE = "empty prompt", "empty response"
DIFFERING, HALF_A_PAIR = "differing histories", "half a surrogate pair"
UNDERSTOOD = (EMPTY_PROMPT, EMPTY_RESPONSE, DIFFERING, HALF_A_PAIR)
# Columns of the text that stands before a conversation.
SYSTEM = ("system", "system_prompt")
# Where the assistant begins to speak in a text that holds a whole conversation.
_ASSISTANT = re.compile(
    r"\n\nAssistant:|<\|im_start\|>assistant\n|<\|assistant\|>\n|\[/INST\]"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|### (?:Assistant|Response):"
)


class ParsedRow(NamedTuple):
    """A row whose shape is understood."""

    kind: Literal["chat", "text", "ids"]
    prompt: Any  # list of messages; text; list of token ids
    # Text, a message where it has more than a content, or several messages; text; list of token
    # ids, each.
    responses: tuple[Any, ...]
    tools: list[Any] | None = None  # that a conversation may call
    continues: bool = False  # whether the responses continue the last message of the prompt


def response_columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a row that hold its responses, one column for each.

    A row may have columns of several shapes: a shape of token ids counts before one of texts, a
    pair before a single response, `messages` before `completion`, and those before a question and
    its answer. A row without any of them ought to have been a pair.
    """
    present = {name for name, value in row.items() if value is not None}
    if present & {*IDS}:
        single = "response_ids" in present and not present & {"chosen_ids", "rejected_ids"}
        return ("response_ids",) if single else ("chosen_ids", "rejected_ids")
    if not present & {"chosen", "rejected"}:
        for column in ("messages", "completion", "conversations"):
            if column in present:
                return (column,)
        if pair := question_and_answer(row):
            return (pair.answer,)
    return ("chosen", "rejected")


def columns_read(row: Mapping[str, Any]) -> set[str]:
    """The columns that `parse_row` reads of a row."""
    columns = response_columns(row)
    if columns[0] in IDS:
        return {"prompt_ids", *columns}
    if columns[0] in ANSWERS and (pair := question_and_answer(row)):
        return {*pair, *ABOUT, *SYSTEM, "tools"}
    prompt = "conversations" if row.get("prompt") is None else "prompt"
    return {prompt, *columns, *SYSTEM, "tools"}


def parse_row(row: Mapping[str, Any]) -> ParsedRow | str:
    """What a row says, or the reason why it cannot be used."""
    try:
        return _checked(_parse(row))
    except UnusableRow as reason:
        return str(reason)
    except RecursionError:
        return "lists or objects are nested too deeply"


def shape(row: Mapping[str, Any]) -> str:
    """The columns of a row and what they hold, in words, for a message."""
    held = [f"{name} ({_kind(value)})" for name, value in list(row.items())[:12]]
    return ", ".join(held + ["..."] * (len(row) > 12)) or "no columns"


# ---- texts and conversations ---------------------------------------------------------------------


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    columns = response_columns(row)
    if columns[0] in IDS:
        ids = [_ids(row, name) for name in ("prompt_ids", *columns)]
        return ParsedRow("ids", ids[0], tuple(ids[1:]))
    if all(name not in row for name in columns):
        raise UnusableRow(
            f"lacks the column {columns[0]!r}, or for a single response 'messages', 'completion' "
            "or a question and its answer"
        )
    responses = {name: _column(row, name, EMPTY_RESPONSE) for name in columns}
    if columns[0] in ANSWERS and (pair := question_and_answer(row)):
        return _question(row, pair.question, responses[pair.answer])
    if columns[0] in ("messages", "conversations"):
        return _conversations(row, responses)
    texts = tuple(value for value in responses.values() if isinstance(value, str))
    if len(texts) < len(columns) or all(map(is_stored_conversation, texts)):
        return _conversations(row, responses)
    prompt = _prompt(row, responses)
    if prompt is None and len(texts) == 2:
        prompt, *answers = _split(row, *texts)
        texts = tuple(answers)
    if isinstance(prompt, str) and not is_stored_conversation(prompt):
        return _text(row, prompt, tuple(texts))
    if prompt is None:
        _column(row, "prompt", EMPTY_PROMPT)
    history = read_messages(prompt, "prompt")
    continues = bool(history) and history[-1]["role"] == "assistant"
    return _chat(row, history, tuple(texts), continues)


def _text(row: Mapping[str, Any], prompt: str, responses: tuple[str, ...]) -> ParsedRow:
    """A row of texts. The system text stands before the prompt, with an empty line between."""
    if _tools(row):
        raise UnusableRow("'tools' beside texts, which no template writes")
    system = _system(row)
    # A prompt of nothing stays one, whatever stands before it.
    before = f"{system}\n\n" if system and prompt.strip() else ""
    return ParsedRow("text", before + prompt, responses)


def _question(row: Mapping[str, Any], question: str, answer: Any) -> ParsedRow:
    """A row of a question and its answer, each a message."""
    check_one_pair(row)
    if not isinstance(answer, str):
        raise UnusableRow("the answer must be a text")
    asked = {"role": "user", "content": question_text(row, question)}
    return _chat(row, [asked], (answer,), continues=False)


def _split(row: Mapping[str, Any], chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two texts of whole conversations as a prompt and two answers.

    The prompt is what they have in common up to the heading of the assistant's last turn.
    """
    ends = [[found.end() for found in _ASSISTANT.finditer(text)] for text in (chosen, rejected)]
    if not all(ends):
        _column(row, "prompt", EMPTY_PROMPT)
    end = ends[0][-1]
    if end != ends[1][-1] or chosen[:end] != rejected[:end]:
        raise UnusableRow(DIFFERING)
    return chosen[:end], chosen[end:], rejected[end:]


def _conversations(row: Mapping[str, Any], responses: Mapping[str, Any]) -> ParsedRow:
    branches = {name: read_messages(value, name) for name, value in responses.items()}
    if not all(branches.values()):
        raise UnusableRow(EMPTY_RESPONSE)
    for name, messages in branches.items():
        if (role := messages[-1]["role"]) != "assistant":
            raise UnusableRow(f"the last role of {name!r} is {role!r}, not 'assistant'")
    alone = all(len(messages) == 1 for messages in branches.values())
    prompt = _prompt(row, responses)
    if isinstance(prompt, str) and not is_stored_conversation(prompt):
        before = [{"role": "user", "content": prompt}] if alone else []
    else:
        before = [] if prompt is None else read_messages(prompt, "prompt")
    continues = alone and bool(before) and before[-1]["role"] == "assistant"
    wholes = [_behind(before, messages) for messages in branches.values()]
    start = _answers_start(wholes)
    answers = tuple(_answer(whole[start:]) for whole in wholes)
    return _chat(row, wholes[0][:start], answers, continues)


def _answers_start(wholes: list[list[Message]]) -> int:
    """How many messages the conversations share before their answers.

    An answer is the last message, or an agent's way to it: calls, and what the tools gave. The
    answers begin where the conversations part, with a message of the assistant.
    """
    first = wholes[0]
    if all(whole[:-1] == first[:-1] for whole in wholes):
        return len(first) - 1
    shared = sum(1 for _ in itertools.takewhile(_all_same, zip(*wholes, strict=False)))
    start = min(shared, *(len(whole) - 1 for whole in wholes))
    while start and any(whole[start]["role"] != "assistant" for whole in wholes):
        start -= 1
    roles = {message["role"] for whole in wholes for message in whole[start:]}
    if not start or not roles <= {"assistant", *TOOL_ROLES}:
        raise UnusableRow(DIFFERING)
    return start


def _all_same(messages: tuple[Message, ...]) -> bool:
    return all(message == messages[0] for message in messages)


def _behind(prompt: list[Message], messages: list[Message]) -> list[Message]:
    """The whole conversation: the messages alone where they repeat the prompt.

    Either of the two may lack the system message that the other has.
    """
    last_start = len(messages) - len(prompt)
    if not prompt or any(
        same(messages[start : start + len(prompt)], prompt) for start in range(last_start + 1)
    ):
        return messages
    system = [*itertools.takewhile(lambda message: message["role"] in SYSTEM_ROLES, prompt)]
    asked_alone = prompt[len(system) :]
    if system and asked_alone and same(messages[: len(asked_alone)], asked_alone):
        return [*system, *messages]
    first, last = messages[0]["role"], prompt[-1]["role"]
    asked = last not in ("assistant", *SYSTEM_ROLES)
    repeated = any(
        same([one], [other]) for one in prompt for other in messages[:-1] if one["role"] == "user"
    )
    if repeated or first in SYSTEM_ROLES or (asked and first != "assistant"):
        raise UnusableRow("the prompt is not the beginning of the conversation")
    return [*prompt, *messages]


def _answer(messages: list[Message]) -> str | Message | list[Message]:
    """A response: its text, the message where it has more than a content, or its messages."""
    *before, last = messages
    _check_contents(before)
    message = {**last, "content": last["content"] or ""}
    if before:
        return [*before, message]
    return message["content"] if message.keys() == {"role", "content"} else message


def _chat(
    row: Mapping[str, Any], history: list[Message], answers: tuple[Any, ...], continues: bool
) -> ParsedRow:
    if continues and not all(isinstance(answer, str) for answer in answers):
        raise UnusableRow("an answer that continues the prompt has more than a content")
    system = _system(row)
    if system and history and history[0]["role"] in SYSTEM_ROLES:
        if not same(history[:1], [{**history[0], "content": system}]):
            raise UnusableRow("the system column differs from the conversation's system message")
    elif system and history:
        history = [{"role": "system", "content": system}, *history]
    _check_contents(history[:-1])
    if history and history[-1]["content"] is None:
        raise UnusableRow(EMPTY_PROMPT)
    return ParsedRow("chat", history, answers, _tools(row), continues)


def _check_contents(messages: list[Message]) -> None:
    for message in messages:
        if message["content"] is None:
            raise UnusableRow(f"null content of a {message['role']!r} message")


# ---- columns -------------------------------------------------------------------------------------


def _column(row: Mapping[str, Any], column: str, if_null: str) -> Any:
    if column not in row:
        raise UnusableRow(f"lacks the column {column!r}")
    if row[column] is None:
        raise UnusableRow(if_null)
    return row[column]


def _prompt(row: Mapping[str, Any], responses: Mapping[str, Any]) -> Any:
    if row.get("prompt") is not None or "conversations" in responses:
        return row.get("prompt")
    return row.get("conversations")


def _system(row: Mapping[str, Any]) -> str:
    found = {row[name] for name in SYSTEM if isinstance(row.get(name), str) and row[name].strip()}
    if any(row.get(name) is not None and not isinstance(row[name], str) for name in SYSTEM):
        raise UnusableRow("the system column must be a text")
    if len(found) > 1:
        raise UnusableRow(f"the columns {' and '.join(map(repr, SYSTEM))} differ")
    return found.pop() if found else ""


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = read_json_list(tools, "tools") if tools.strip() else None
    if tools in (None, []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UnusableRow("'tools' must be a list of objects")
    return tools


def _ids(row: Mapping[str, Any], column: str) -> list[int]:
    ids = _column(row, column, EMPTY_PROMPT if column == "prompt_ids" else EMPTY_RESPONSE)
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise UnusableRow(f"{column!r} must be a list of integers")
    if any(not 0 <= i < 2**31 for i in ids):
        raise UnusableRow(f"{column!r} holds a number that is no token id")
    return ids


# ---- what is left to check -----------------------------------------------------------------------


def _checked(row: ParsedRow) -> ParsedRow:
    if _is_empty(row.prompt):
        raise UnusableRow(EMPTY_PROMPT)
    if any(map(_is_empty, row.responses)):
        raise UnusableRow(EMPTY_RESPONSE)
    if not _is_unicode(row):
        raise UnusableRow(HALF_A_PAIR)
    return row


def _is_empty(value: Any) -> bool:
    """Nothing, only white space, or a conversation that ends with such a message."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1]
    if isinstance(value, Mapping):
        value = "a call" if value.keys() & {*CALLS} else value["content"]
    return not (value.strip() if isinstance(value, str) else value)


def _is_unicode(row: ParsedRow) -> bool:
    """False for a text cut in the middle of an emoji's escape, which no tokenizer takes."""
    if row.kind == "ids":
        return True
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except TypeError:  # a table's cells may hold dates or bytes
        raise UnusableRow("a message or tool holds what JSON cannot") from None
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return f"object with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, list):
        return f"list of {_kind(value[0])}" if value else "empty list"
    return "number" if isinstance(value, (int, float)) else type(value).__name__
