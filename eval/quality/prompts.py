"""The prompts that a policy is asked: of a user's preference file, or of a run's own validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.config.schema import Config
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.messages import UnusableRow, is_stored_conversation, read_messages
from tddpo_jax.data.sources import read_rows
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import resolve

from ..tasks.embedded import Conversation

COLUMNS = ("prompt", "conversations", "messages", "chosen")  # the first that a row has counts

TokenIds = list[int]
Prompt = Conversation | TokenIds


def read_prompts(path: str) -> list[Conversation]:
    """The prompts of a preference file as conversations, each prompt once.

    Raises:
        UserError: the file cannot be read, or a row holds no conversation.
    """
    prompts: list[Conversation] = []
    for number, row in enumerate(read_rows(path)):
        try:
            messages = _conversation(row)
        except UnusableRow as reason:
            raise UserError(f"--prompts: {path} row {number}: {reason}") from None
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise UserError(f"--prompts: {path} row {number} has an empty conversation")
        if messages not in prompts:
            prompts.append(messages)
    return prompts


def _conversation(row: Mapping[str, Any]) -> Conversation:
    """The messages of a row: its prompt, or a conversation that ends with an answer."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and not is_stored_conversation(prompt):
        return [{"role": "user", "content": prompt}]
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise UnusableRow(f"has none of the columns {', '.join(COLUMNS)}")
    messages = read_messages(row[column], column)
    if any(message["content"] is None for message in messages):
        raise UnusableRow(f"a message in {column!r} has no content")
    return messages


def validation_prompts(config: Config) -> list[TokenIds]:
    """The prompts of a run's validation data as the run encoded them, each prompt once.

    Raises:
        UserError: the run's data or model cannot be read any more, or it had no validation data.
    """
    files = resolve(config.model.path)
    dataset = load_dataset(
        config.data,
        load_tokenizer_if_any(files.tokenizer),
        context=hugging_face.read_config(files.base).context,
        cache=cache_folder(),
    )
    prompts = dict.fromkeys(tuple(example.prompt.tolist()) for example in dataset.validation)
    if not prompts:
        raise UserError(
            f"{config.output}: the run has no validation data to take prompts from; give --prompts"
        )
    return [list(prompt) for prompt in prompts]
