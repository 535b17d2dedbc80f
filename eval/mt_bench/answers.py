"""Lets a model answer the questions. Each model and seed has a file, which records how it was made.

The protocol is FastChat's (lm-sys/FastChat, `gen_model_answer.py`): the temperature depends on the
category, a turn has up to 1,024 new tokens, there is no system prompt, and the second question
follows the first answer. Unlike FastChat, we never guess the template from the model's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.errors import UserError
from tddpo_jax.generation.generator import Completion
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.system.console import Screen
from tddpo_jax.system.json_lines import appending, read_rows

from .benchmark import Answer, Question

# FastChat's temperature_config. Categories that are not listed are greedy.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
NEW_TOKENS = 1024

Item = tuple[int, Question]
Append = Callable[[Mapping[str, Any]], None]


@runtime_checkable
class Generates(Protocol):
    """The part of `tddpo_jax.generation.generator.Generator` that is used."""

    dtype: Any

    @property
    def tokenizer(self) -> Any: ...

    @property
    def context(self) -> int: ...

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sequence[Sampling],
        keys: Sequence[tuple[int, ...]],
    ) -> list[Completion]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate.

    Attributes:
        template: a name of `tddpo_jax.data.named_templates.NAMED`; None for the tokenizer's own.
        system: the system prompt; None for no system prompt.
        temperature: the temperature of every question; None for FastChat's, by category.
        top_k: sample from this many tokens; 0 for all.
        top_p: sample from the likeliest tokens of this probability.
        max_new_tokens: new tokens of one turn; None for 1,024, or for half the model's context if
            that is less.
    """

    template: str | None = None
    system: str | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None

    def temperature_of(self, question: Question) -> float:
        """The temperature for a question; 0 is greedy."""
        if self.temperature is not None:
            return self.temperature
        if question.required_temperature is not None:
            return question.required_temperature
        return TEMPERATURES.get(question.category, 0.0)


def record(generator: Generates, settings: Settings, weights: str) -> dict[str, Any]:
    """How answers are made, as every row of a file records it. One file has one such record.

    Raises:
        UserError: the template is unknown or does not fit the tokenizer, or the context has no room
            for new tokens.
    """
    style = chat_format(generator.tokenizer, settings.template)
    if settings.template is None and style.name != "tokenizer":
        warnings.warn(
            f"the tokenizer has no chat template; {style.name!r} is used (see --template)",
            stacklevel=2,
        )
    new_tokens = settings.max_new_tokens or min(NEW_TOKENS, generator.context // 2)
    if new_tokens >= generator.context:
        raise UserError(
            f"--max-new-tokens {new_tokens}: the model's context has {generator.context} tokens"
        )
    return {
        "weights": weights,
        "dtype": str(np.dtype(generator.dtype)),
        "template": style.name,
        "template_sha256": hashlib.sha256(style.jinja.encode()).hexdigest(),
        "system": settings.system,
        "temperature": "by category" if settings.temperature is None else settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_new_tokens": new_tokens,
    }


def answers_folder(model: str) -> Path:
    """The folder of a model's answers.

    It lies in `mt_bench` in the model's grid or run directory, where `eval.report` looks for
    scores. For a model of neither, it lies in `mt_bench` in the working directory.
    """
    run = Path(model)
    if not (run / "run.json").is_file():
        home = Path()
    elif (run.parent / "grid.json").is_file():
        home = run.parent
    else:
        home = run
    return home / "mt_bench" / "model_answer"


def answer_path(folder: Path, model_id: str, seed: int) -> Path:
    """The file of a model's answers with one seed."""
    return folder / f"{model_id}-seed{seed}.jsonl"


def unanswered(
    questions: Sequence[Question], path: Path, making: Mapping[str, Any]
) -> list[Question]:
    """The questions that a file does not answer. The file need not exist.

    Raises:
        UserError: the file was made in another way. The message names what differs.
    """
    rows = read_rows(path, Answer) if path.exists() else []
    for row in rows:
        made = row.generation or {}
        differing = [name for name in making if made.get(name) != making[name]]
        if differing:
            raise UserError(
                f"{path}: was generated with another {' and '.join(differing)}; "
                "remove it, or choose another --output or --model-id"
            )
    answered = {row.question_id for row in rows}
    return [question for question in questions if question.question_id not in answered]


def generate_answers(
    generator: Generates,
    questions: Sequence[Question],
    *,
    model_id: str,
    seeds: Sequence[int],
    folder: Path,
    settings: Settings,
    making: Mapping[str, Any],
    batch_size: int,
    screen: Screen,
) -> int:
    """Answers, for every seed, the questions that its file lacks.

    A batch may hold several seeds. It is written when both turns are there, so a kill loses one
    batch. The composition of a batch changes no answer, because every answer has its own random
    key.

    Args:
        generator: the model.
        questions: the questions, in order.
        model_id: the model's name in files and rows.
        seeds: the seeds, one file each.
        folder: the folder of the files.
        settings: how to generate.
        making: how answers are made, from `record`.
        batch_size: conversations generated at a time.
        screen: shows progress.

    Returns:
        How many answers did not see the beginning of their prompt, because the prompt was too long.
    """
    with contextlib.ExitStack() as stack:
        append, items = {}, []
        for seed in seeds:
            path = answer_path(folder, model_id, seed)
            append[seed] = stack.enter_context(appending(path))
            items += [(seed, question) for question in unanswered(questions, path, making)]
        update = stack.enter_context(screen.stage("answering"))
        done = cut = 0
        for batch in _batches(items, batch_size):
            for (seed, _), row in zip(
                batch, _answers(generator, batch, settings, making), strict=True
            ):
                append[seed]({**row, "model_id": model_id})
                cut += any(row["prompt_cut"])
                done += 1
            update(done, len(items))
    return cut


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _answers(
    generator: Generates, batch: list[Item], settings: Settings, making: Mapping[str, Any]
) -> list[dict[str, Any]]:
    conversations: list[list[dict[str, str]]] = [[] for _ in batch]
    completions: list[list[Completion]] = [[] for _ in batch]
    sampling = [
        Sampling(
            temperature=settings.temperature_of(question),
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=making["max_new_tokens"],
        )
        for _, question in batch
    ]
    for turn in range(2):
        for conversation, (_, question) in zip(conversations, batch, strict=True):
            conversation.append({"role": "user", "content": question.turns[turn]})
        prompts = [
            encode_prompt(
                generator.tokenizer, conversation, settings.template, system=settings.system
            )
            for conversation in conversations
        ]
        keys: list[tuple[int, ...]] = [
            (seed, question.question_id, turn + 1) for seed, question in batch
        ]
        replies = generator.generate(prompts, sampling, keys)
        for conversation, found, reply in zip(conversations, completions, replies, strict=True):
            conversation.append({"role": "assistant", "content": reply.text.strip()})
            found.append(reply)
    return [
        _answer_row(item, settings, making, conversation, found)
        for item, conversation, found in zip(batch, conversations, completions, strict=True)
    ]


def _answer_row(
    item: Item,
    settings: Settings,
    making: Mapping[str, Any],
    conversation: list[dict[str, str]],
    completions: list[Completion],
) -> dict[str, Any]:
    seed, question = item
    turns = [message["content"] for message in conversation if message["role"] == "assistant"]
    return {
        "question_id": question.question_id,
        "answer_id": uuid.uuid4().hex,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
        "seed": seed,
        "temperature": settings.temperature_of(question),
        "finish_reasons": [completion.finish_reason for completion in completions],
        "prompt_cut": [bool(completion.prompt_cut) for completion in completions],
        "new_tokens": [len(completion.token_ids) for completion in completions],
        "generation": dict(making),
    }
