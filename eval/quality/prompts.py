"""The prompts of a user's preference file."""

from __future__ import annotations

from tddpo_jax.data.sources import read_rows
from tddpo_jax.errors import UserError

from ..tasks.embedded import Conversation


def read_prompts(path: str) -> list[Conversation]:
    """The prompts of a preference file as conversations, each prompt once.

    Raises:
        UserError: the file cannot be read, or a row holds no conversation.
    """
    prompts: list[Conversation] = []
    for number, row in enumerate(read_rows(path)):
        given = row.get("prompt", row.get("chosen"))
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(messages, list):
            raise UserError(f"--prompts: {path} row {number} has neither prompt nor chosen")
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        if not messages:
            raise UserError(f"--prompts: {path} row {number} has an empty conversation")
        if messages not in prompts:
            prompts.append(messages)
    return prompts
