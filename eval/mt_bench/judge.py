"""Lets a judge rate answers: which requests, how many at a time, and when a run gives up.

If the judge's answer is cut off or holds no rating, it is asked again a few times. Then an invalid
row is written, which no mean ever counts. A request that fails is counted and not written: the next
run asks it again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .benchmark import Record
from .endpoint import Reply, RequestFailed, RequestRefused, Session, client, complete
from .judge_settings import Accepted, Judge, JudgeStopped
from .judgments import Judgment
from .requests import Request, parse_rating, request_hash

# A run stops after so many requests in a row have failed. A refused request says little about the
# next one, so more of them are allowed.
FAILURES_IN_A_ROW = 5
REFUSALS_IN_A_ROW = 20


@dataclasses.dataclass
class Tally:
    """How a run goes: requests judged, failures since the last success, and their reasons."""

    judged: int = 0
    in_a_row: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    def succeeded(self) -> None:
        """Counts a success."""
        self.judged += 1
        self.in_a_row = 0

    def failed(self, failure: RequestFailed) -> None:
        """Counts a failure.

        Raises:
            JudgeStopped: too many requests failed in a row. If the endpoint has never answered, one
                is too many.
        """
        self.reasons[str(failure)] += 1
        self.in_a_row += 1
        if isinstance(failure, RequestRefused):
            limit = REFUSALS_IN_A_ROW
        else:
            limit = FAILURES_IN_A_ROW if self.judged else 1
        if self.in_a_row >= limit:
            first = limit == 1
            said = "the first request failed" if first else f"{limit} requests failed in a row"
            raise JudgeStopped(f"{said}: {failure}")


def run(
    requests: Sequence[Request],
    judge: Judge,
    key: str,
    *,
    accepted: Accepted,
    data: Record,
    append: Callable[[Mapping[str, Any]], None],
    update: Callable[[int, int], None],
) -> Counter[str]:
    """Judges every request. Each judgment is appended as soon as it comes.

    Args:
        requests: the requests, in order.
        judge: whom to ask and how.
        key: the endpoint's key. No row and no message holds it.
        accepted: what to start with, from `accepted_before`.
        data: `Data.record`, written into every row.
        append: writes a row.
        update: called with the number of requests that were judged or failed, and of all.

    Returns:
        The reasons of failed requests, counted. It is empty if all were judged.

    Raises:
        UserError: the key or the model is refused.
        JudgeStopped: the quota is spent, the endpoint cannot be reached, or request after request
            fails.
    """
    tally = Tally()
    done = 0

    async def judge_next(session: Session, queue: Iterator[Request]) -> bool:
        nonlocal done
        request = next(queue, None)
        if request is None:
            return False
        try:
            row = await judged(session, request)
        except RequestFailed as failure:
            tally.failed(failure)
        else:
            tally.succeeded()
            append({**row.model_dump(), "data": data})
        done += 1
        update(done, len(requests))
        return True

    async def work(session: Session, queue: Iterator[Request]) -> None:
        while await judge_next(session, queue):
            pass

    async def judge_all() -> None:
        queue = iter(requests)
        async with client(judge, key) as opened:
            session = Session(client=opened, judge=judge, key=key, accepted=accepted)
            # Requests go out one at a time until one is judged. That one shows what the endpoint
            # accepts, and whether there is an endpoint at all.
            while not tally.judged and await judge_next(session, queue):
                pass
            async with asyncio.TaskGroup() as workers:
                for _ in range(judge.concurrency):
                    workers.create_task(work(session, queue))

    try:
        asyncio.run(judge_all())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return tally.reasons


async def judged(session: Session, request: Request) -> Judgment:
    """Asks until there is a rating, at most `judge.attempts` times.

    Raises:
        RequestFailed: the endpoint failed, or sent something that is not a chat completion.
    """
    judge = session.judge
    replies: list[Reply] = []
    attempts = 0
    while attempts < judge.attempts and not (replies and why_invalid(replies[-1]) is None):
        attempts += 1
        reply = await complete(session, request.messages)
        replies += [] if reply is None else [reply]
    if not replies:
        raise RequestFailed("the endpoint's answer is not a chat completion")
    reply = replies[-1]
    invalid = why_invalid(reply)
    rating = parse_rating(reply.text)
    return Judgment(
        question_id=request.question_id,
        model=request.model,
        judge=(judge.model, request.prompt),
        user_prompt=request.user,
        judgment=reply.text,
        score=-1 if invalid or rating is None else rating,
        turn=request.turn,
        tstamp=time.time(),
        model_id=request.model_id,
        seed=request.seed,
        category=request.category,
        request_hash=request_hash(judge.model, request, judge.requested),
        invalid=invalid,
        attempts=attempts,
        retries=sum(reply.retries for reply in replies),
        finish_reason=reply.finish_reason,
        response_model=reply.model,
        usage={
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "completion_tokens": sum(reply.completion_tokens for reply in replies),
        },
        requested=judge.requested,
        parameters=reply.accepted.parameters,
        system_role=reply.accepted.system_role,
        base_url=judge.where,
        generation=request.generation,
    )


def why_invalid(reply: Reply) -> str | None:
    """Why a reply has no rating that counts; None if it has one. A cut-off reply has none."""
    if reply.finish_reason in ("length", "content_filter"):
        return f"stopped by {reply.finish_reason}"
    return "no rating" if parse_rating(reply.text) is None else None
