"""Which of the scored answers to a prompt make pairs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tddpo_jax.data.formats import ParsedRow

WAYS = ("best", "all")


def chosen_and_rejected(scores: Sequence[float | None], way: str) -> list[tuple[int, int]]:
    """The answers that make pairs: the number of the chosen and of the rejected one, for each pair.

    Equal scores make no pair. Of equally good answers the first counts.

    Args:
        scores: of the answers; None for an answer that makes no pair.
        way: `best`: the best answer against the worst; `all`: each answer against every worse one.
    """
    scored = [(score, number) for number, score in enumerate(scores) if score is not None]
    pairs = [
        (better, worse)
        for (high, better), (low, worse) in itertools.product(scored, repeat=2)
        if high > low
    ]
    if way == "all" or not pairs:
        return pairs
    best, worst = max(score for score, _ in scored), min(score for score, _ in scored)
    return [next(pair for pair in pairs if (scores[pair[0]], scores[pair[1]]) == (best, worst))]


def pair_row(prompt: ParsedRow, chosen: Any, rejected: Any) -> dict[str, Any]:
    """A prompt and two answers to it as a row to train on.

    Args:
        prompt: what was asked.
        chosen: text or token ids of the better answer.
        rejected: text or token ids of the worse answer.
    """
    answers: Mapping[str, Any] = {"chosen": chosen, "rejected": rejected}
    if prompt.kind == "ids":
        ids = {f"{name}_ids": answer for name, answer in answers.items()}
        return {"prompt_ids": prompt.prompt, **ids}
    if prompt.kind == "text":
        return {"prompt": prompt.prompt, **answers}
    said = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    tools = {} if prompt.tools is None else {"tools": prompt.tools}
    return {"prompt": prompt.prompt, **said, **tools}
