"""What a policy is asked: a user's rows, a run's own validation prompts, or the embedded ones.

All policies of one base are asked the same token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tddpo_jax.config.schema import Config, DataSource
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.row_prompts import load_prompts
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import resolve

from ..tasks import embedded


class Question(NamedTuple):
    """One prompt, and what a reward reads beside the answer."""

    ids: tuple[int, ...]
    prompt: Any  # a text, a conversation, or the ids
    row: Mapping[str, Any]  # of the user's file; empty for all other prompts
    number: int  # of the row, or of the prompt


def given_questions(
    path: str,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str | None,
    most: int,
    vocabulary: Vocabulary,
) -> tuple[list[Question], dict[str, list[int]]]:
    """The prompts of a user's file, each once, and the rows that are not asked by reason.

    Args:
        path: a file, folder or hub id; see `data.row_prompts`.
        tokenizer: of the base.
        template: name of a chat template; None for the tokenizer's own.
        most: tokens of a prompt.
        vocabulary: of the base.

    Raises:
        UserError: the file cannot be read, or none of its rows has a prompt that the base takes.
    """
    prompts, unused = load_prompts(
        DataSource(path=path), tokenizer, template, most=most, vocabulary=vocabulary
    )
    questions: dict[tuple[int, ...], Question] = {}
    for prompt in prompts:
        ids = tuple(prompt.ids.tolist())
        questions.setdefault(ids, Question(ids, prompt.asked, prompt.columns, prompt.row))
    return list(questions.values()), unused


def embedded_questions(
    tokenizer: PreTrainedTokenizerBase | None, template: str | None
) -> list[Question]:
    """The prompts of the embedded task.

    Raises:
        UserError: there is no tokenizer.
    """
    if tokenizer is None:
        raise UserError("--prompts: the base has no tokenizer; give rows with prompt_ids")
    return [
        Question(
            tuple(encode_prompt(tokenizer, prompt, template).tolist()),
            prompt[0]["content"],
            {},
            number,
        )
        for number, prompt in enumerate(embedded.prompts())
    ]


def validation_questions(config: Config) -> list[Question]:
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
    return [Question(ids, list(ids), {}, number) for number, ids in enumerate(prompts)]
