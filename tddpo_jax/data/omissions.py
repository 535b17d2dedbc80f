"""What a chat template leaves out of a conversation.

A template may pass over a role, a key of a message, or a part of a content. A policy would then
be trained on half of a row. Three things are checked:

*   The words of the row: the template must write each content, white space aside.
*   A probe of the row, the same conversation with a word of its own in the place of each text. The
    template must write each of these words. This finds a message whose text also stands elsewhere,
    and keys that are not read. Rows of one shape with the same call ids share one probe, which is
    written once.
*   The roles: a message of another role than user and assistant must not be written as if it were
    of the role system, user or assistant.

The identifiers `id`, `type`, `tool_call_id` and the `name` of a tool's message say which call a
message answers. They need not be written.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tddpo_jax.data.chat_format import ChatFormat, render
from tddpo_jax.data.messages import CALLS, TOOL_ROLES, Message, map_leaves, words
from tddpo_jax.errors import UserError

OMISSION = "template: leaves out"


def omission(
    style: ChatFormat, messages: Sequence[Message], tools: list[Any] | None, text: str
) -> str | None:
    """The reason why a written conversation cannot be used, or None if nothing is left out.

    Args:
        style: how it is written.
        messages: the whole conversation.
        tools: that it may call.
        text: what the template wrote.
    """
    written = words(text)
    for message in messages:
        if words(message["content"]) not in written:
            return f"{OMISSION} a part of a message of the role {message['role']!r}"
    probe = _Probe()
    conversation = [probe.message(message) for message in messages]
    probed = json.dumps([conversation, probe.tools(tools)])
    return _probed(style, probed, tuple(probe.planted)) or _roles(
        style, tuple(message["role"] for message in messages)
    )


class _Probe:
    """Puts a word of its own in the place of each text, and remembers what it stands for."""

    def __init__(self) -> None:
        self.planted: list[tuple[str, str]] = []  # (word, what it stands for)
        self._numbers: Iterator[int] = itertools.count(1)

    def message(self, message: Message) -> Message:
        role, probed = message["role"], dict(message)
        if message["content"]:
            probed["content"] = self._word(f"a message of the role {role!r}")
        # In the message's order. A set's order would change the reason from process to process.
        for key, value in message.items():
            if key in ("role", "content", "tool_call_id"):
                continue
            if key in CALLS:
                probed[key] = self._calls(value, key)
            elif key != "name" or role not in TOOL_ROLES:
                probed[key] = self._leaf(value, f"{key!r} of a message")
        return probed

    def tools(self, tools: Any) -> Any:
        """Descriptions of tools with their names and descriptions replaced."""
        if isinstance(tools, list):
            return [self.tools(each) for each in tools]
        if not isinstance(tools, dict):
            return tools
        return {
            key: self._word(f"the {key} of a tool")
            if key in ("name", "description") and isinstance(value, str) and value
            else self.tools(value)
            for key, value in tools.items()
        }

    def _calls(self, value: Any, key: str) -> Any:
        """Calls with the functions' names and arguments replaced."""
        if isinstance(value, list):
            return [self._calls(each, key) for each in value]
        if not isinstance(value, dict):
            return value
        what = f"{key!r} of a message"
        probed = {}
        for name, part in value.items():
            if name == "arguments" and isinstance(part, str):
                probed[name] = json.dumps({self._word(what): 1}) if part else part
            elif name == "arguments":
                probed[name] = map_leaves(part, lambda leaf: self._leaf(leaf, what))
            elif name == "name":
                probed[name] = self._leaf(part, what)
            else:
                probed[name] = self._calls(part, key)
        return probed

    def _leaf(self, leaf: Any, what: str) -> Any:
        if isinstance(leaf, str) and leaf:
            return self._word(what)
        if type(leaf) is int:
            return int(self._planted(f"7919{next(self._numbers):04d}", what))
        return leaf

    def _word(self, what: str) -> str:
        return self._planted(f"qz{next(self._numbers)}zq", what)

    def _planted(self, word: str, what: str) -> str:
        self.planted.append((word, what))
        return word


@functools.lru_cache(maxsize=4096)
def _probed(style: ChatFormat, probe: str, planted: tuple[tuple[str, str], ...]) -> str | None:
    """The reason of the first word of a probe that the template does not write."""
    messages, tools = json.loads(probe)
    try:
        text = render(style, messages, tools)
    except UserError:
        return None  # it wrote the row itself, so the probe is at fault
    missing = next((what for word, what in planted if word not in text), None)
    return missing and f"{OMISSION} {missing}"


@functools.lru_cache(maxsize=4096)
def _roles(style: ChatFormat, roles: tuple[str, ...]) -> str | None:
    """The reason of the first message that is written as if its role were another.

    Turns of user and assistant may go without headings, since their places tell them apart.
    """
    messages = [{"role": role, "content": f"qz{i}zq"} for i, role in enumerate(roles)]
    text = _rendered(style, messages)
    if text is None:
        return None
    for number, role in enumerate(roles):
        for other in ("system", "user", "assistant"):
            if role in ("user", "assistant", other):
                continue
            changed = [dict(message) for message in messages]
            changed[number]["role"] = other
            if _rendered(style, changed) == text:
                return f"{OMISSION} the role {role!r}, written like {other!r}"
    return None


def _rendered(style: ChatFormat, messages: list[Message]) -> str | None:
    try:
        return render(style, messages)
    except UserError:
        return None
