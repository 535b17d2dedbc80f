"""Which requests a judge has not answered yet. This needs no client."""

from __future__ import annotations

from collections.abc import Sequence

from .judge_settings import Accepted, Judge
from .judgments import Judgment, Key, by_key, latest_keys
from .requests import Request, request_hash


def key_of(request: Request, judge: Judge) -> Key:
    """The key that finds a judgment of this request."""
    slot = request.model, judge.model, request.question_id, request.turn
    return slot, request.prompt, request_hash(judge.model, request, judge.requested)


def pending(
    requests: Sequence[Request],
    rows: Sequence[Judgment],
    judge: Judge,
    *,
    retry_invalid: bool = False,
) -> list[Request]:
    """The requests that no row answers. Another text, prompt or sampling is another request."""
    known = by_key(rows)
    done = {key for key, row in known.items() if row.rating is not None or not retry_invalid}
    return [request for request in requests if key_of(request, judge) not in done]


def carried_over(
    requests: Sequence[Request], rows: Sequence[Judgment], judge: Judge
) -> list[Judgment]:
    """Rows to write again, because an answer was changed, judged, and changed back.

    The judge is not asked again. The copy makes the current row the last one of its slot: without
    answer files, `judgments.current` takes the last row for the current one.
    """
    known = by_key(rows)
    latest = latest_keys(rows)
    keys = [key_of(request, judge) for request in requests]
    return [known[key] for key in keys if key in known and latest[key[0]] != key]


def accepted_before(rows: Sequence[Judgment], judge: Judge) -> Accepted:
    """What the same judge accepted in an earlier run, else what is wanted."""
    for row in reversed(rows):
        same = row.judge[0] == judge.model and row.base_url == judge.where
        if same and row.requested == judge.requested and row.parameters is not None:
            return Accepted(row.parameters, row.system_role)
    return Accepted(judge.requested)
