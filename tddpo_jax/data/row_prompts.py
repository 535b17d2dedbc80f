"""The prompts of rows that have no answers yet, or whose answers do not matter.

A row's prompt is the first of these that it has:

*   `prompt_ids`: token ids, taken verbatim.
*   `prompt`: a message of the user, or a conversation. The assistant's words at its end are the
    beginning of the answer.
*   `instruction`, `question` or `problem`, with `input` or `context` behind it (see `questions`).
*   `messages` or `conversations`: a conversation; an answer at its end is left out.
*   `chosen` and `rejected`: the prompt that the pair has in training.

`system` and `tools` stand beside it, as beside a pair. The ids are those of training, because the
same code makes them of the same row with a stand-in for the answer. A text is the exception:
training takes the texts of a pair verbatim, and here a `prompt` that is a text is a user's message,
unless the command has `--raw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.dataset import style_of
from tddpo_jax.data.examples import Unusable, Vocabulary, check_vocabulary, encode
from tddpo_jax.data.formats import EMPTY_PROMPT, SYSTEM, ParsedRow, parse_row, shape
from tddpo_jax.data.messages import UnusableRow, is_stored_conversation, read_messages
from tddpo_jax.data.questions import PAIRS, question_text
from tddpo_jax.data.sources import Source, named_rows, none_usable
from tddpo_jax.errors import UserError

STAND_IN = "answer"


class Prompt(NamedTuple):
    """What a row asks."""

    row: int  # number in its source
    columns: Mapping[str, Any]  # of the row
    parsed: ParsedRow  # with a stand-in for the answer
    ids: Int[np.ndarray, " n"]  # from which generation starts

    @property
    def asked(self) -> Any:
        """The user's text, where that is all; else the conversation; or the token ids."""
        first, *others = self.parsed.prompt
        alone = self.parsed.kind == "chat" and not others and first.keys() == {"role", "content"}
        return first["content"] if alone and first["role"] == "user" else self.parsed.prompt


def load_prompts(
    data: DataSource,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str | None,
    *,
    raw: bool = False,
    most: int,
    vocabulary: Vocabulary,
) -> tuple[list[Prompt], dict[str, list[int]]]:
    """The prompts of a source's rows, in order, and the rows without one by reason.

    Args:
        data: the source.
        tokenizer: None will do for token ids.
        template: name of a chat template; None for the tokenizer's own.
        raw: whether a text is the beginning of a text, and not a message.
        most: tokens of a prompt; a row with a longer one is not used.
        vocabulary: the model's.

    Raises:
        UserError: the source cannot be read, none of its rows has a prompt, a prompt holds an id
            that the model does not have, or the template is wrong.
    """
    name, rows = named_rows(data.path, data.split, data.config, data.columns)
    parsed = [parse_prompt(row, raw=raw) for row in rows]
    source = Source(name, parsed, list(range(len(rows))), 1, shape(rows[0]), "")
    style = style_of(template, tokenizer, [source])
    prompts: list[Prompt] = []
    unused: dict[str, list[int]] = {}
    encoded = list(encode(list(enumerate(parsed)), style))
    check_vocabulary(name, [each for each in encoded if isinstance(each, Example)], vocabulary)
    for what, example in zip(parsed, encoded, strict=True):
        reason = example.reason if isinstance(example, Unusable) else _too_long(example, most)
        if reason is not None:
            unused.setdefault(reason, []).append(example.row)
        elif isinstance(what, ParsedRow) and isinstance(example, Example):
            prompts.append(Prompt(example.row, rows[example.row], what, example.prompt))
    if not prompts:
        raise UserError(none_usable("data", name, unused, shape(rows[0])))
    return prompts, unused


def _too_long(example: Example, most: int) -> str | None:
    return f"a prompt of more than {most} tokens" if len(example.prompt) > most else None


def parse_prompt(row: Mapping[str, Any], *, raw: bool = False) -> ParsedRow | str:
    """A row's prompt with a stand-in for its answer, or the reason why it has no prompt."""
    beside = {name: row[name] for name in (*SYSTEM, "tools") if name in row}
    try:
        asked = _asked(row, raw)
    except UnusableRow as reason:
        return str(reason)
    return parse_row({**beside, **asked}) if isinstance(asked, dict) else asked


def _asked(row: Mapping[str, Any], raw: bool) -> dict[str, Any] | ParsedRow:
    """The columns of a row of one response that asks what this row asks; of a pair, the whole."""
    if row.get("prompt_ids") is not None:
        return {"prompt_ids": row["prompt_ids"], "response_ids": [0]}
    text = _text(row)
    if text is not None and not text.strip():
        raise UnusableRow(EMPTY_PROMPT)
    if text is not None:
        prompt = text if raw else [{"role": "user", "content": text}]
        return {"prompt": prompt, "completion": STAND_IN}
    if raw:
        raise UnusableRow("--raw takes a text as the prompt")
    messages = _conversation(row)
    return _of_pair(row) if messages is None else {"prompt": messages, "completion": STAND_IN}


def _text(row: Mapping[str, Any]) -> str | None:
    """The prompt of a row if it is a text."""
    prompt = row.get("prompt")
    if prompt is not None:
        return prompt if isinstance(prompt, str) and not is_stored_conversation(prompt) else None
    column = next((name for name in PAIRS if row.get(name) is not None), None)
    return None if column is None else question_text(row, column)


def _conversation(row: Mapping[str, Any]) -> Any:
    """The messages before the answer of a row; None if no column of its own holds them."""
    if row.get("prompt") is not None:
        return read_messages(row["prompt"], "prompt")
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            messages = read_messages(row[column], column)
            answered = bool(messages) and messages[-1]["role"] == "assistant"
            return messages[: len(messages) - answered]
    return None


def _of_pair(row: Mapping[str, Any]) -> ParsedRow:
    """What a pair without a prompt of its own asks."""
    if row.get("chosen") is None:
        raise UnusableRow("has no column with a prompt, such as 'prompt'")
    pair = parse_row(row)
    if isinstance(pair, str):
        raise UnusableRow(pair)
    return pair._replace(responses=(STAND_IN,))
