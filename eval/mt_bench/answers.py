"""Has a model answer the questions: one file per model and seed, with all that made it on record.

FastChat's protocol (lm-sys/FastChat, `gen_model_answer.py`): the temperature depends on the
category, 1,024 new tokens a turn, no system prompt, and the second question is asked behind the
first answer. Unlike there, the template is never guessed from the model's name.
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

from eval.mt_bench.benchmark import Answer, Question
from eval.mt_bench.json_lines import appending, read_rows
from tddpo_jax.data.templates import chat_format, encode_prompt
from tddpo_jax.errors import UserError
from tddpo_jax.generation.generator import Completion
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.system.console import Screen
from tddpo_jax.weights.locate import resolve
from tddpo_jax.weights.tensor_files import content_hash, files_hash

# FastChat's temperature_config; the categories that are not here are greedy.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
NEW_TOKENS = 1024

Item = tuple[int, Question]
Append = Callable[[Mapping[str, Any]], None]


@runtime_checkable
class Generates(Protocol):
    """The part of `tddpo_jax.generation.generator.Generator` that is used."""

    tokenizer: Any
    dtype: Any

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
        template: a name of `tddpo_jax.data.templates.NAMED`; None: the tokenizer's own.
        temperature: for every question; None: FastChat's, by category.
        max_new_tokens: of one turn; None: 1,024, or half the model's context if that is less.
    """

    template: str | None = None
    system: str | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None

    def temperature_of(self, question: Question) -> float:
        if self.temperature is not None:
            return self.temperature
        if question.required_temperature is not None:
            return question.required_temperature
        return TEMPERATURES.get(question.category, 0.0)


def record(generator: Generates, settings: Settings, weights: str) -> dict[str, Any]:
    """What every row of an answer file says of its making; a file holds answers of one making only.

    Raises:
        UserError: the template is unknown or does not fit the tokenizer; no room for new tokens in
            the context.
    """
    style = chat_format(generator.tokenizer, settings.template)
    if settings.template is None and style.name != "tokenizer":
        warnings.warn(
            f"the tokenizer has no chat template, {style.name!r} is used: see --template",
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


def weights_of(model: str) -> str:
    """The hash of a model's config and weights, and of its adapter's, if it has one.

    So that answers are not continued by another model, a run trained again into its directory say.

    Raises:
        UserError: as `model_files.resolve`.
    """
    files = resolve(model)
    base = content_hash(files.base)
    if files.adapter is None:
        return base
    return f"{base}+{files_hash(sorted(files.adapter.glob('adapter_*')))}"


def answers_folder(model: str) -> Path:
    """Where `eval.report` looks for a model's score: `mt_bench` in its grid or run directory.

    A model that is neither has its answers in `mt_bench` of the working directory.
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
    return folder / f"{model_id}-seed{seed}.jsonl"


def unanswered(
    questions: Sequence[Question], path: Path, making: Mapping[str, Any]
) -> list[Question]:
    """The questions that a file, which need not exist, has no answer to.

    Raises:
        UserError: the file was made in another way: names what differs.
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

    Batches run over the seeds and are written when both turns are there, so that a kill loses one
    batch. What is in a batch with what changes no answer: every one has a random key of its own.

    Args:
        making: from `record`.
        batch_size: conversations generated at a time.

    Returns:
        How many answers were given without the beginning of a prompt that did not fit.
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
