"""The cost of judging, estimated before anything is sent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from .judge_settings import Judge
from .judgments import Judgment
from .requests import Request

# For English text and the tokenizers of current judges. Chat markup adds a few tokens a message.
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
# The length of a judgment, if there is no row of this judge yet. A judge that reasons first writes
# far more.
TOKENS_PER_JUDGMENT = 300


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Requests, tokens, and the tokens of judgments if every judgment reached the limit."""

    requests: int
    tokens_in: int
    tokens_out: int
    most_tokens_out: int

    def cost(self, price_in: float, price_out: float) -> tuple[float, float]:
        """The expected and the highest cost, at prices per million tokens."""
        paid_in = self.tokens_in * price_in
        return (
            (paid_in + self.tokens_out * price_out) / 1e6,
            (paid_in + self.most_tokens_out * price_out) / 1e6,
        )


def estimate(requests: Sequence[Request], rows: Sequence[Judgment], judge: Judge) -> Estimate:
    """Estimates a run in which the judge answers every request once.

    Args:
        requests: the requests to send.
        rows: earlier judgments. If this judge made any, their mean length is used.
        judge: whom to ask.
    """
    lengths = [
        row.usage["completion_tokens"] / row.attempts
        for row in rows
        if row.judge[0] == judge.model and row.usage and row.usage.get("completion_tokens")
    ]
    length = sum(lengths) / len(lengths) if lengths else TOKENS_PER_JUDGMENT
    return Estimate(
        requests=len(requests),
        tokens_in=sum(_tokens(message["content"]) for r in requests for message in r.messages),
        tokens_out=round(min(length, judge.max_tokens) * len(requests)),
        most_tokens_out=judge.max_tokens * len(requests),
    )


def _tokens(text: str) -> int:
    return TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
