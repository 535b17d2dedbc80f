"""A judgment: FastChat's row with the keys that we add, and which rows of a file count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from pydantic_core import PydanticCustomError

from tddpo_jax.system.json_lines import Row

from .benchmark import Record
from .requests import Turn, fastchat_rating, parse_rating

# What a row answers, except for the text: the model's file, the judge, the question, the turn.
Slot = tuple[str, str, int, int]
# A slot, the prompt's name and the request's hash. A resumed run asks no known key again.
Key = tuple[Slot, str, str | None]


class Judgment(Row):
    """A row of `model_judgment/<judge>_single.jsonl`. From `model_id` on the keys are ours.

    Attributes:
        score: the rating. It is -1 if there is none, so that FastChat drops the row; `invalid` then
            says why.
        attempts: how often the judge was asked.
        retries: how often the client repeated a request on the way.
        usage: tokens over all attempts.
        requested: the sampling that was wanted.
        parameters: the sampling that the endpoint accepted.
        system_role: whether the endpoint took the system message; if not, the user's began with it.
        data: `Data.record`.
        generation: how the answer was generated, from the answer's own file.
    """

    question_id: int
    model: str
    judge: tuple[str, str]
    user_prompt: str = ""
    judgment: str = ""
    score: int | float
    turn: Turn
    tstamp: float = 0.0
    model_id: str | None = None
    seed: int | None = None
    category: str | None = None
    request_hash: str | None = None
    invalid: str | None = None
    attempts: int = 1
    retries: int = 0
    finish_reason: str | None = None
    response_model: str | None = None
    usage: dict[str, int] | None = None
    requested: dict[str, int | pydantic.FiniteFloat] | None = None
    parameters: dict[str, int | pydantic.FiniteFloat] | None = None
    system_role: bool = True
    base_url: str | None = None
    data: Record | None = None
    generation: dict[str, Any] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _is_single(cls, row: Any) -> Any:
        if isinstance(row, dict) and "model_1" in row and "model" not in row:
            raise PydanticCustomError(
                "pairwise", "compares two answers; only ratings of single answers are read"
            )
        return row

    @property
    def slot(self) -> Slot:
        """What the row answers."""
        return self.model, self.judge[0], self.question_id, self.turn

    @property
    def key(self) -> Key:
        """The key of the row's request."""
        return self.slot, self.judge[1], self.request_hash

    @property
    def rating(self) -> float | None:
        """The score if it counts: from 1 to 10, and as we read it where FastChat read it.

        FastChat's parser also takes a single bracket and a number in a judge's reasoning.
        """
        if self.invalid is not None or not 1 <= self.score <= 10:
            return None
        by_fastchat = fastchat_rating(self.judgment) == self.score
        rating = parse_rating(self.judgment) if by_fastchat else self.score
        return None if rating is None else float(rating)

    @property
    def fastchat_score(self) -> int | float:
        """The score that FastChat would have stored. Its parser is laxer than ours."""
        return fastchat_rating(self.judgment) if self.judgment else self.score


def by_key(rows: Iterable[Judgment]) -> dict[Key, Judgment]:
    """The row that counts for each request: the first one with a rating, else the first one."""
    chosen: dict[Key, Judgment] = {}
    for row in rows:
        known = chosen.get(row.key)
        if known is None or (known.rating is None and row.rating is not None):
            chosen[row.key] = row
    return chosen


def latest_keys(rows: Iterable[Judgment]) -> dict[Slot, Key]:
    """The last request of each slot. `judge.carried_over` makes sure that it is the current one."""
    return {row.slot: row.key for row in rows}


def current(rows: Iterable[Judgment], keys: Mapping[Slot, Key] | None = None) -> list[Judgment]:
    """The rows that count: one per slot, for its current request.

    Args:
        rows: rows of files, with duplicates and judgments of older answers.
        keys: the current request of each slot, made from the answer files; by default the last
            request.
    """
    rows = list(rows)
    chosen = by_key(rows)
    keys = latest_keys(rows) if keys is None else keys
    return [chosen[key] for key in keys.values() if key in chosen]
