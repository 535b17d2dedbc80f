"""Several answers to each prompt, scored by a reward, and kept line by line as they are made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.data.row_prompts import Prompt
from tddpo_jax.errors import UserError
from tddpo_jax.generation.answer_pairs import chosen_and_rejected, pair_row
from tddpo_jax.generation.generator import Completion, Generator
from tddpo_jax.generation.rewards import Reward
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.system.json_lines import Row, appending, read_rows

ANSWERS_AT_ONCE = 128  # between two writes

Progress = Callable[[int, int], None]


class Answers(Row):
    """The answers to one prompt: a line of the file.

    Attributes:
        index: number of the prompt's row.
        prompt: the conversation, the text, or the token ids.
        answers: text or token ids of each.
        scores: of each.
        finished: whether the model ended each of them itself.
        made: what the answers depend on; one file has one such record.
    """

    index: int
    prompt: Any
    answers: list[Any]
    scores: list[float]
    finished: list[bool]
    made: dict[str, Any]


def read_answers(file: Path, made: dict[str, Any]) -> list[Answers]:
    """The answers in a file, which need not exist.

    Raises:
        UserError: the file is damaged or was made in another way. The message names what differs.
    """
    rows = read_rows(file, Answers) if file.exists() else []
    for row in rows[:1]:
        differing = [name for name in made if row.made.get(name) != made[name]]
        if differing:
            raise UserError(
                f"output: {file} was made with another {' and '.join(differing)}; remove it, or "
                "choose another --output"
            )
    return rows


def answer_prompts(
    generator: Generator,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
    made: dict[str, Any],
    file: Path,
    there: int,
    progress: Progress,
) -> None:
    """Appends the answers to every prompt whose answers the file lacks.

    Answer k to the prompt of row i has the random key (seed, i, k). Prompts are always answered in
    the same batches, so that a resumed file is that of an uninterrupted command.

    Args:
        generator: the model.
        prompts: all prompts, in the order of the file.
        reward: scores the answers.
        samples: number of answers to each prompt.
        sampling: how each answer is sampled.
        seed: of the random keys.
        made: what the answers depend on.
        file: of the answers.
        there: number of prompts whose answers the file has.
        progress: called with the numbers of answered prompts and of all prompts.

    Raises:
        UserError: a prompt holds an id that the model does not have, or the reward fails.
    """
    at_once = max(1, ANSWERS_AT_ONCE // samples)
    with appending(file) as append:
        for first in range(there - there % at_once, len(prompts), at_once):
            batch = prompts[first : first + at_once]
            numbered = [(prompt, number) for prompt in batch for number in range(samples)]
            completions = iter(
                generator.generate(
                    [prompt.ids for prompt, _ in numbered],
                    [sampling] * len(numbered),
                    [(seed, prompt.row, number) for prompt, number in numbered],
                )
            )
            for place, prompt in enumerate(batch, first):
                mine = list(itertools.islice(completions, samples))
                if place >= there:
                    said = [_said(prompt, each, generator.has_tokenizer) for each in mine]
                    append(_line(prompt, mine, said, reward, made))
            progress(first + len(batch), len(prompts))


def _line(
    prompt: Prompt,
    completions: Sequence[Completion],
    said: Sequence[str | list[int]],
    reward: Reward,
    made: dict[str, Any],
) -> dict[str, Any]:
    by_ids = prompt.parsed.kind == "ids"
    return Answers(
        index=prompt.row,
        prompt=prompt.parsed.prompt,
        answers=[completion.token_ids for completion in completions] if by_ids else list(said),
        scores=[reward.score(prompt.row, prompt.asked, each, prompt.columns) for each in said],
        finished=[completion.finish_reason == "stop" for completion in completions],
        made=made,
    ).model_dump()


def _said(prompt: Prompt, completion: Completion, has_text: bool) -> str | list[int]:
    """The answer's text, without white space around it where a template writes it; else its ids."""
    if not has_text:
        return completion.token_ids
    written = prompt.parsed.kind == "chat" and not prompt.parsed.continues
    return completion.text.strip() if written else completion.text


def pairs_of(prompt: Prompt, line: Answers, way: str) -> Iterator[dict[str, Any]]:
    """Yields the pairs that the answers to a prompt make, as rows to train on.

    An answer of nothing makes no pair, because none can be trained on.

    Args:
        prompt: what was asked.
        line: the answers to it.
        way: as in `chosen_and_rejected`.
    """
    both = zip(line.answers, line.scores, strict=True)
    usable = [score if answer and not str(answer).isspace() else None for answer, score in both]
    for better, worse in chosen_and_rejected(usable, way):
        yield {
            "index": line.index,
            **pair_row(prompt.parsed, line.answers[better], line.answers[worse]),
            "score_chosen": line.scores[better],
            "score_rejected": line.scores[worse],
        }
