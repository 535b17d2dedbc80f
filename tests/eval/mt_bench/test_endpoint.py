"""Endpoints that limit, fail, refuse or stall, and the key, through the real `openai` client."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from judge_server import (
    Behaviour,
    Call,
    JudgeServer,
    Response,
    error,
    first_then,
    judge_server,
    quota,
    rate,
    says,
)
from mt_bench_files import write_answers
from mt_bench_judging import KEY, REQUESTS, Bench, make_bench, run


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    return make_bench(tmp_path, monkeypatch, capsys)


def test_rate_limits_and_server_errors_are_waited_for(bench: Bench) -> None:
    limited = error(429, "slow down", code="rate_limit_exceeded", headers={"Retry-After": "0.3"})
    soon = {"Retry-After": "0.01"}
    with judge_server(first_then(error(503), limited, error(500, headers=soon))) as server:
        start = time.monotonic()
        done = bench.judge(server, "--concurrency", "1")
    assert time.monotonic() - start > 0.3
    assert done.status == 0
    assert len(server.calls) == REQUESTS + 3
    assert [row["retries"] for row in done.rows] == [3, 0, 0, 0, 0, 0, 0, 0]


def test_the_client_allows_a_retry_after_of_two_minutes_and_no_more(bench: Bench) -> None:
    too_long = error(429, "tomorrow", headers={"Retry-After": "121"})
    with judge_server(first_then(too_long)) as server:
        done = bench.judge(server)
    assert (done.status, len(server.calls), done.rows) == (1, 1, [])
    assert "the first request failed: status 429: tomorrow" in done.err


@pytest.mark.parametrize(
    ("response", "status", "said"),
    [
        (error(401, f"Incorrect API key provided: {KEY}."), 2, "OPENAI_API_KEY: http"),
        (error(403, "no access"), 2, "refuses the key (403): no access"),
        (error(404, "unknown", code="model_not_found"), 2, "--judge-model judge: not found"),
        (error(400, "invalid model ID", param="model"), 2, "--judge-model judge: not found"),
        (quota(), 1, "the quota at http"),
        (error(402, "Insufficient Balance"), 1, "the quota at http"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_stops_at_once_with_one_line(
    bench: Bench, response: Response, status: int, said: str, after: int
) -> None:
    def behaviour(call: Call) -> Response:
        return rate(call) if call.number < after else response

    with judge_server(behaviour) as server:
        done = bench.judge(server, "--concurrency", "1")
    assert done.status == status
    assert said in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert len(done.rows) == after, "what was judged is kept, an error is no judgment"
    assert len(server.calls) == after + 1, "nothing is retried"


def test_stopping_does_not_wait_for_requests_under_way(bench: Bench) -> None:
    def behaviour(call: Call) -> Response:
        if call.number == 0:
            return rate(call)
        return quota() if call.number == 3 else says("[[5]]", seconds=10)

    with judge_server(behaviour) as server:
        start = time.monotonic()
        done = bench.judge(server, "--concurrency", "3")
        assert time.monotonic() - start < 8
    assert (done.status, len(done.rows), len(server.calls)) == (1, 1, 4)


def test_a_limit_that_is_too_large_is_not_dropped(bench: Bench) -> None:
    message = "max_tokens is too large: 2048. This model supports at most 1024 tokens"
    with judge_server(lambda call: error(400, message)) as server:
        done = bench.judge(server)
    assert (done.status, len(server.calls)) == (1, REQUESTS)
    assert message in done.err


@pytest.mark.parametrize(
    "bad",
    [
        Response(200, "{"),
        Response(200, "<html>", {"Content-Type": "text/html"}),
        Response(200, {"choices": []}),
        Response(200, {"error": "x"}),
        Response(200, []),
    ],
)
def test_malformed_answers_are_asked_for_again_and_never_stored(
    bench: Bench, bad: Response
) -> None:
    def behaviour(call: Call) -> Response:
        if "coding 0" in call.messages:
            return bad
        return bad if "writing 0" in call.messages and call.repeat < 1 else rate(call)

    with judge_server(behaviour) as server:
        done = bench.judge(server)
        assert done.status == 1
        assert "2 requests failed; the next run asks them again" in done.err
        assert "not a chat completion" in done.err
        assert sorted({row["question_id"] for row in done.rows}) == [81, 111, 141]
        server.behaviour = rate
        mended = bench.judge(server)
    assert (mended.status, len(mended.rows)) == (0, REQUESTS)


def test_a_failed_request_is_no_score_and_the_run_goes_on(bench: Bench) -> None:
    def behaviour(call: Call) -> Response:
        return error(500, "broken") if "coding 0" in call.messages else rate(call)

    with judge_server(behaviour) as server:
        done = bench.judge(server, "--max-retries", "1")
    assert done.status == 1
    assert "2 requests failed; the next run asks them again: status 500: broken" in done.err
    assert len(done.rows) == REQUESTS - 2
    assert all(row["score"] >= 1 for row in done.rows)


def test_refused_requests_do_not_keep_the_others_from_being_judged(bench: Bench) -> None:
    """Six of eight, the first ones: each is refused again in every run."""

    def behaviour(call: Call) -> Response:
        return rate(call) if "stem 0" in call.messages else error(400, "too long", code="too_long")

    with judge_server(behaviour) as server:
        for _ in range(2):
            done = bench.judge(server)
            assert (done.status, len(done.rows)) == (1, 2)
            assert "6 requests failed" in done.err
    assert len(server.calls) == REQUESTS + 6


def test_an_endpoint_that_refuses_everything_is_left(bench: Bench) -> None:
    for seed in (1, 2):
        write_answers(bench.folder / "model_answer", bench.folder / "data", seed=seed)
    with judge_server(lambda call: error(400, "max_tokens is too large")) as server:
        done = bench.judge(server)
    assert (done.status, len(server.calls), done.err.count("\n")) == (1, 20, 1)


def test_five_failures_in_a_row_stop_the_run(bench: Bench) -> None:
    with judge_server(first_then(rate_once(), *[error(500, "down")] * 9)) as server:
        done = bench.judge(server, "--max-retries", "0", "--concurrency", "1")
    assert (done.status, len(server.calls), len(done.rows)) == (1, 6, 1)
    assert "5 requests failed in a row: status 500: down" in done.err


def rate_once() -> Response:
    return says("Rating: [[5]]")


def test_slow_answers_run_out_of_time(bench: Bench) -> None:
    with judge_server(lambda call: says("[[5]]", seconds=0.6)) as server:
        done = bench.judge(server, "--timeout", "0.2", "--max-retries", "0")
    assert done.status == 1
    assert "the first request failed: no answer within 0.2 s" in done.err
    assert done.rows == []


def test_nobody_there(bench: Bench) -> None:
    with judge_server(rate) as server:
        pass
    done = bench.judge(server, "--max-retries", "1")
    assert done.status == 1
    assert f"no connection to {server.url}" in done.err


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda call: error(401, f"Incorrect API key provided: {call.authorization}"),
        lambda call: error(500, f"key {KEY}"),
        lambda call: says(f"Your key is {KEY}. Rating: [[5]]"),
        lambda call: error(429, f"quota of {KEY}", code="insufficient_quota"),
    ],
)
def test_the_key_is_nowhere(bench: Bench, behaviour: Behaviour) -> None:
    with judge_server(behaviour) as server:
        secret = server.url.replace("http://", f"http://user:{KEY}@") + f"?key={KEY}"
        done = bench.judge(server, "--max-retries", "0")
        hidden = JudgeServer(secret, behaviour)
        also = bench.judge(hidden, "--max-retries", "0", "--max-tokens", "7")
    for text in (done.out, done.err, also.out, also.err):
        assert KEY not in text
    for path in bench.folder.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()


@pytest.mark.parametrize("key", ["sk-line\nbreak-secret", "sk-ümlaut-secret", "sk-a b-secret"])
def test_a_key_no_header_can_hold_is_not_quoted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with judge_server(rate) as server:
        done = bench.judge(server, "--api-key-env", "MY_KEY")
    assert (done.status, server.calls) == (2, [])
    assert "MY_KEY" in done.err
    assert "secret" not in done.err


def test_whose_key_is_needed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with judge_server(rate) as server:
        assert bench.judge(server).status == 0, "an endpoint of one's own may want no key"
        assert server.calls[0].authorization == "Bearer none"
        missing = bench.judge(server, "--api-key-env", "MY_KEY")
        assert (missing.status, missing.err.count("\n")) == (2, 1)
        assert "--api-key-env MY_KEY: the variable is not set" in missing.err
    arguments = f"judge --judge-model j --data-dir {bench.folder / 'data'}"
    assert run([*arguments.split(), "--answers", str(bench.folder / "model_answer")]) == 2


def replies(content: object, **more: str) -> Behaviour:
    """Answers with a message of this content and these other fields."""
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return lambda call: Response(200, {"model": "judge", "choices": [choice]})


@pytest.mark.parametrize(
    "behaviour",
    [
        replies("[[9]]", reasoning_content="e.g. [[5]]"),
        replies("[[9]]", reasoning="e.g. [[5]]"),
        replies([{"type": "thinking", "text": "[[5]]"}, {"type": "text", "text": "[[9]]"}]),
    ],
)
def test_reasoning_in_another_field_is_no_judgment(bench: Bench, behaviour: Behaviour) -> None:
    with judge_server(behaviour) as server:
        done = bench.judge(server)
    assert {row["score"] for row in done.rows} == {9}
    assert {row["judgment"] for row in done.rows} == {"[[9]]"}


def test_reasoning_without_an_answer_is_no_rating(bench: Bench) -> None:
    with judge_server(replies(None, reasoning_content="e.g. [[5]]")) as server:
        done = bench.judge(server, "--attempts", "1")
    assert {(row["score"], row["invalid"]) for row in done.rows} == {(-1, "no rating")}


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "System role not supported"),
        error(422, "Template error: invalid operation: System role not supported"),
        error(400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        error(400, "Only user and assistant roles are supported!"),
        error(400, "Developer instruction is not enabled for models/gemma"),
        error(
            400,
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            code="unsupported_value",
            param="messages[0].role",
        ),
    ],
)
def test_without_a_system_role_its_text_begins_the_users(bench: Bench, refusal: Response) -> None:
    """Refused once; then and in a later run the one message holds both texts."""

    def behaviour(call: Call) -> Response:
        return refusal if call.body["messages"][0]["role"] == "system" else rate(call)

    with judge_server(behaviour) as server:
        done = bench.judge(server)
        assert (done.status, len(done.rows), len(server.calls)) == (0, REQUESTS, REQUESTS + 1)
        write_answers(bench.folder / "model_answer", bench.folder / "data", seed=1)
        done = bench.judge(server)
        assert (len(done.rows), len(server.calls)) == (2 * REQUESTS, 2 * REQUESTS + 1)
    assert not any(row["system_role"] for row in done.rows)
    first = server.calls[1].body["messages"]
    assert [message["role"] for message in first] == ["user"]
    assert first[0]["content"] == f"Help.\n\n{done.rows[0]['user_prompt']}"
