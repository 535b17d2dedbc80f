"""The messages of a conversation, as data sets in the wild write them.

A message is `{role, content}`, or ShareGPT's `{from, value}`. Its content is a text, or a list of
text parts that are joined. `KEYS` are the further keys that carry words. They go to the chat
template with the message. The roles of other tools have our names here: `human` is `user`, `gpt`
is `assistant`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tddpo_jax.system.json_files import parse

Message = dict[str, Any]

SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function", "ipython")
ROLES = {
    **{name: name for name in (*SYSTEM_ROLES, "user", "assistant", *TOOL_ROLES)},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "chatbot", "model", "ai", "llm"), "assistant"),
    **dict.fromkeys(("observation", "tool_response"), "tool"),
}
CALLS = ("tool_calls", "function_call")
KEYS = ("name", *CALLS, "tool_call_id", "reasoning_content", "reasoning", "thinking")

# What a text begins with that holds a conversation as JSON or in Python's notation.
_STORED = re.compile(r"\s*\[?\s*\{\s*['\"](role|from|content|value)['\"]\s*:")


class UnusableRow(Exception):
    """The reason why a row makes no example. `formats.parse_row` catches it."""


def read_messages(value: Any, column: str) -> list[Message]:
    """The messages in a column: a list of them, a single one, or a text that holds either.

    A content that is null stays None.

    Raises:
        UnusableRow: the column holds no messages, or one that is not understood.
    """
    value = _stored_conversation(value) if isinstance(value, str) else value
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise UnusableRow(f"{column!r} must be a list of {{role, content}} or {{from, value}}")
    return [_message(each, column) for each in value]


def _stored_conversation(text: str) -> Any:
    """The conversation that a text holds as JSON or in Python's notation, else the text.

    Raises:
        UnusableRow: the text begins like a conversation and cannot be read.
    """
    if not _STORED.match(text):
        return text
    for read in (parse, lambda text: ast.literal_eval(text.strip())):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise UnusableRow("a conversation that is stored as a text cannot be read")


def is_stored_conversation(value: Any) -> bool:
    """Whether a value is a text that begins like a stored conversation."""
    return isinstance(value, str) and _STORED.match(value) is not None


def keys_not_read(message: Mapping[str, Any]) -> set[str]:
    """The keys of a message that neither we nor the template read."""
    present = {str(key) for key, value in message.items() if value is not None}
    return present - {"role", "from", "content", "value", *KEYS}


def same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether two conversations differ in nothing but white space."""
    return list(map(_normalised, one)) == list(map(_normalised, other))


def words(text: str) -> str:
    """A text whose white space is single spaces between words."""
    return " ".join(text.split())


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same lists and mappings, with a function applied to each value that is neither."""
    if isinstance(value, Mapping):
        return {key: map_leaves(each, function) for key, each in value.items()}
    if isinstance(value, list):
        return [map_leaves(each, function) for each in value]
    return function(value)


def texts_in(value: Any) -> Iterator[str]:
    """The texts that nested lists and mappings hold, in the order of `map_leaves`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(each)


# ---- one message ---------------------------------------------------------------------------------


def _message(message: Mapping[str, Any], column: str) -> Message:
    further = {key: message[key] for key in KEYS if message.get(key) not in (None, "", [], {})}
    if isinstance(further.get("tool_calls"), str):
        further["tool_calls"] = read_json_list(further["tool_calls"], "tool_calls")
    content = _content(_first_of(message, "content", "value"))
    if content is None and further.keys() & {*CALLS}:
        content = ""  # tables hold null where a message is nothing but a call
    role = _role(_first_of(message, "role", "from"), column)
    return {"role": role, "content": content, **further}


def _first_of(message: Mapping[str, Any], *names: str) -> Any:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _role(role: Any, column: str) -> str:
    if role is None:
        raise UnusableRow(f"a message in {column!r} has no role")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise UnusableRow(f"the role {_short(role)} in {column!r} is unknown")
    return known


def _content(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list):
        raise UnusableRow(f"a content is neither a text nor a list of text parts: {_short(parts)}")
    return "".join(map(_part, parts))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", None):
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise UnusableRow(f"a content has a part that is not text: {_short(kind)}")


def read_json_list(text: str, what: str) -> list[Any]:
    """The list that a text holds as JSON.

    Raises:
        UnusableRow: the text holds something else.
    """
    try:
        value = parse(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise UnusableRow(f"{what!r} is neither a list nor a JSON list")
    return value


def _normalised(message: Message) -> Message:
    return map_leaves(message, lambda leaf: words(leaf) if isinstance(leaf, str) else leaf)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
