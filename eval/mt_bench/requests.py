"""What the judge is asked about an answer, and how its rating is read.

The four prompts are FastChat's: `single-v1` and `single-v1-multi-turn`, and for mathematics,
reasoning and coding `single-math-v1` and `single-math-v1-multi-turn`, which show a reference
answer. When it judges the second turn, the judge sees the whole conversation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any, Literal

from tddpo_jax.errors import UserError

from .benchmark import REFERENCE_CATEGORIES, AnswerFile, Data, JudgePrompt

Turn = Literal[1, 2]

# How models mark their reasoning: `<think>` and its variants, Mistral's `[THINK]`.
REASONING_START = re.compile(r"\s*(<(think|thinking|thought|reasoning)>|\[THINK\])", re.I)
REASONING_END = re.compile(r"(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])", re.I)


@dataclasses.dataclass(frozen=True)
class Request:
    """One turn of one answer to be judged, and the two messages that ask for it."""

    question_id: int
    turn: Turn
    category: str
    model: str
    model_id: str
    seed: int | None
    prompt: str
    system: str
    user: str
    generation: dict[str, Any] | None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The two messages of the chat."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]


def requests_for(data: Data, file: AnswerFile) -> list[Request]:
    """The requests for every answered question, in order, turn 1 before turn 2.

    Raises:
        UserError: an answer has no question in the benchmark, or a reference answer or judge prompt
            is missing.
    """
    unknown = set(file.answers) - set(data.questions)
    if unknown:
        raise UserError(f"{file.path}: question {min(unknown)} is not one of the benchmark's")
    turns: tuple[Turn, Turn] = (1, 2)
    return [
        _request(data, file, question_id, turn)
        for question_id in data.questions
        if question_id in file.answers
        for turn in turns
    ]


def _request(data: Data, file: AnswerFile, question_id: int, turn: Turn) -> Request:
    question = data.questions[question_id]
    answer = file.answers[question_id]
    name = prompt_name(question.category, turn)
    if name not in data.prompts:
        raise UserError(f"judge prompts: {name!r} is missing")
    prompt = data.prompts[name]
    fields = {
        "question": question.turns[0],
        "question_1": question.turns[0],
        "question_2": question.turns[1],
        "answer": answer.turns[0],
        "answer_1": answer.turns[0],
        "answer_2": answer.turns[1],
    }
    if question.category in REFERENCE_CATEGORIES:
        if question_id not in data.references:
            raise UserError(f"reference answers: question {question_id} has none")
        first, second = data.references[question_id].turns
        fields |= {"ref_answer_1": first, "ref_answer_2": second}
    return Request(
        question_id=question_id,
        turn=turn,
        category=question.category,
        model=file.model,
        model_id=file.model_id,
        seed=file.seed,
        prompt=name,
        system=prompt.system_prompt,
        user=_filled(prompt, fields),
        generation=answer.generation,
    )


def _filled(prompt: JudgePrompt, fields: dict[str, str]) -> str:
    try:
        return prompt.prompt_template.format(**fields)
    except (LookupError, ValueError) as error:
        raise UserError(f"judge prompt {prompt.name!r}: no value for {error}") from None


def prompt_name(category: str, turn: Turn) -> str:
    """The name of FastChat's judge prompt for a category and turn."""
    kind = "single-math-v1" if category in REFERENCE_CATEGORIES else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"


def request_hash(judge: str, request: Request, requested: dict[str, int | float]) -> str:
    """Identifies what is asked of whom: the judge's name, the messages, the wanted sampling.

    The sampling that the endpoint accepts is not part of it. Only asking shows that, and a resumed
    run must know the hash without asking.
    """
    asked = {"model": judge, "messages": request.messages, **requested}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def parse_rating(text: str) -> int | float | None:
    """The number in the first `[[number]]` of a judgment, behind the judge's reasoning, or None.

    The prompts ask for 1 to 10. If the first number is outside of that there is no rating, whatever
    follows it. A single-bracket `[5]` is never a rating, because it may be an index into an array.
    Reasoning often quotes the prompt's own example of a rating. It reaches to the last mark of its
    end; without such a mark, reasoning that was opened is all there is.

    >>> parse_rating("Rating: [[7.5]]"), parse_rating("array[0] is [5]"), parse_rating("[[11]]")
    (7.5, None, None)
    """
    rating = _first_number(r"\[\[(\d+\.?\d*)\]\]", _verdict(text))
    return rating if rating is not None and 1 <= rating <= 10 else None


def _verdict(text: str) -> str:
    """A judgment without its reasoning. Many a chat template opens it before the judgment."""
    behind = REASONING_END.split(text)[-1]
    return "" if REASONING_START.match(behind) else behind


def fastchat_rating(text: str) -> int | float:
    """The score that FastChat reads in a judgment: the first `[[n]]`, else `[n]`, else -1."""
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        rating = _first_number(pattern, text)
        if rating is not None:
            return rating
    return -1


def _first_number(pattern: str, text: str) -> int | float | None:
    match = re.search(pattern, text, re.ASCII)
    if match is None:
        return None
    return float(match[1]) if "." in match[1] else int(match[1])
