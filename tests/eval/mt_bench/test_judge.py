"""What is asked, stored and not asked again, through the real `openai` client."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from judge_server import (
    Call,
    Response,
    error,
    judge_server,
    rate,
    refuse,
    says,
)
from mt_bench_files import write_answers
from mt_bench_judging import KEY, REQUESTS, Bench, make_bench

from eval.mt_bench.requests import parse_rating


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    return make_bench(tmp_path, monkeypatch, capsys)


def test_judges_every_turn_once_and_writes_fastchats_schema(bench: Bench) -> None:
    with judge_server(rate) as server:
        done = bench.judge(server)
    assert done.status == 0
    assert f"{REQUESTS} of {REQUESTS} requests judged" in done.out
    assert len(server.calls) == len(done.rows) == REQUESTS
    assert {(row["question_id"], row["turn"]) for row in done.rows} == {
        (question, turn) for question in (81, 111, 121, 141) for turn in (1, 2)
    }
    row = done.rows[0]
    assert list(row)[:8] == [
        "question_id",
        "model",
        "judge",
        "user_prompt",
        "judgment",
        "score",
        "turn",
        "tstamp",
    ]
    assert (row["model"], row["model_id"], row["seed"]) == ("tiny-seed0", "tiny", 0)
    assert row["judge"] == ["judge", "single-v1"]
    assert row["score"] == parse_rating(row["judgment"])
    assert row["usage"] == {"prompt_tokens": 100, "completion_tokens": 10}
    assert (row["attempts"], row["retries"], row["invalid"]) == (1, 0, None)
    assert (row["finish_reason"], row["response_model"]) == ("stop", "judge-2026-01-01")
    assert row["parameters"] == row["requested"] == {"temperature": 0.0, "max_tokens": 2048}
    assert row["data"]["question_count"] == 4
    assert row["base_url"] == server.url
    sent = server.calls[0].body
    assert sent["messages"][1]["content"] == row["user_prompt"]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("judge", 0, 2048)
    assert server.calls[0].authorization == f"Bearer {KEY}"


def test_a_finished_run_asks_nothing_again(bench: Bench) -> None:
    with judge_server(rate) as server:
        first = bench.judge(server)
        again = bench.judge(server)
        assert len(server.calls) == REQUESTS
    assert again.status == 0
    assert again.rows == first.rows


def test_changed_answers_are_judged_anew_and_only_they(bench: Bench) -> None:
    answers, data = bench.folder / "model_answer", bench.folder / "data"
    with judge_server(rate) as server:
        bench.judge(server)
        path = answers / "tiny-seed0.jsonl"
        original = path.read_text()
        path.write_text(original.replace("answer {b}", "another", 1))
        changed = bench.judge(server)
        assert len(server.calls) == REQUESTS + 1, "the second turn of question 81"
        assert (changed.rows[-1]["question_id"], changed.rows[-1]["turn"]) == (81, 2)
        path.write_text(original)
        back = bench.judge(server)
        assert len(server.calls) == REQUESTS + 1, "the first text was judged already"
        assert len(back.rows) == REQUESTS + 2
        assert back.rows[-1] in changed.rows[:REQUESTS], "written again as the current one"
        write_answers(answers, data, seed=1)
        bench.judge(server)
        assert len(server.calls) == 2 * REQUESTS + 1
        bench.judge(server, "--max-tokens", "99")
        assert len(server.calls) == 4 * REQUESTS + 1


@pytest.mark.parametrize(
    ("refused", "accepted", "requests"),
    [
        (("temperature",), {"max_tokens": 2048}, 1),
        (("max_tokens",), {"temperature": 0, "max_completion_tokens": 2048}, 1),
        (("max_tokens", "temperature"), {"max_completion_tokens": 2048}, 2),
        (("max_tokens", "max_completion_tokens"), {"temperature": 0}, 2),
    ],
)
def test_parameters_are_negotiated_once_and_recorded(
    bench: Bench, refused: tuple[str, ...], accepted: dict[str, float], requests: int
) -> None:
    with judge_server(refuse(*refused)) as server:
        done = bench.judge(server)
        assert len(server.calls) == REQUESTS + requests
        write_answers(bench.folder / "model_answer", bench.folder / "data", seed=1)
        done = bench.judge(server)
        assert len(server.calls) == 2 * REQUESTS + requests, "a later run starts from the record"
    assert done.status == 0
    assert all(row["parameters"] == accepted for row in done.rows)
    assert all(row["requested"] == {"temperature": 0, "max_tokens": 2048} for row in done.rows)


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "max_tokens: Extra inputs are not permitted",
    ],
)
def test_refusals_in_words_alone_are_understood(bench: Bench, message: str) -> None:
    def behaviour(call: Call) -> Response:
        return error(422, message) if "max_tokens" in call.body else rate(call)

    with judge_server(behaviour) as server:
        done = bench.judge(server)
    assert done.status == 0
    assert done.rows[0]["parameters"] == {"temperature": 0, "max_completion_tokens": 2048}


@pytest.mark.parametrize(
    ("bad", "invalid"),
    [
        (says("A fine answer."), "no rating"),
        (says("array[0] is [5]"), "no rating"),
        (says("Rating: [[11]]"), "no rating"),
        (says("Rating: [[0]]"), "no rating"),
        (says("Rating: [[7]] because", finish_reason="length"), "stopped by length"),
        (says("Rating: [[7]]", finish_reason="content_filter"), "stopped by content_filter"),
    ],
)
def test_unusable_judgments_are_asked_for_again_then_recorded_as_invalid(
    bench: Bench, bad: Response, invalid: str
) -> None:
    def behaviour(call: Call) -> Response:
        if "math 0" in call.messages:
            return bad
        return bad if "writing 0" in call.messages and call.repeat < 1 else rate(call)

    with judge_server(behaviour) as server:
        done = bench.judge(server, "--attempts", "3")
        assert len(server.calls) == 4 + 2 * 2 + 2 * 3
        rows = {(row["question_id"], row["turn"]): row for row in done.rows}
        assert len(rows) == REQUESTS
        assert (rows[111, 1]["score"], rows[111, 1]["invalid"]) == (-1, invalid)
        assert (rows[111, 1]["attempts"], rows[81, 1]["attempts"]) == (3, 2)
        assert rows[81, 1]["usage"] == {"prompt_tokens": 200, "completion_tokens": 20}
        assert rows[81, 1]["score"] > 0
        assert done.status == 0
        assert "2 judgments have no valid rating" in done.out
        calls = len(server.calls)
        bench.judge(server)
        assert len(server.calls) == calls, "invalid rows are not asked again unless told"
        server.behaviour = rate
        mended = bench.judge(server, "--retry-invalid")
        assert len(server.calls) == calls + 2
        assert "no valid rating" not in mended.out


def test_concurrency_is_used_and_bounded(bench: Bench) -> None:
    def slow(call: Call) -> Response:
        return says("[[5]]", seconds=0.3)

    with judge_server(slow) as server:
        bench.judge(server, "--concurrency", "3")
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base-url", "localhost:8000"], "--base-url: must begin"),
        (["--base-url", "http://[::1"], "--base-url: must begin"),
        (["--base-url", "http://h:99999/v1"], "--base-url: must begin"),
        (["--concurrency", "0"], "--concurrency: must be at least 1"),
        (["--temperature", "nan"], "--temperature: must be at least"),
        (["--attempts", "many"], "--attempts: invalid int value: 'many'"),
        (["--answers", "absent"], "absent: No such file"),
        (["--data-dir", "absent"], "absent/mt_bench/question.jsonl: no such file"),
        (["--price-in", "1", "--dry-run"], "--price-out"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(bench: Bench, options: list[str], said: str) -> None:
    with judge_server(rate) as server:
        done = bench.judge(server, *options)
    assert (done.status, done.err.count("\n"), server.calls) == (2, 1, [])
    assert said in done.err


def test_dry_run_sends_nothing_and_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices per million: cost = tokens in * 2.5e-6 + tokens out * 10e-6, out = 300 a judgment."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with judge_server(rate) as server:
        done = bench.judge(server, "--dry-run", "--price-in", "1e6", "--price-out", "1e6")
        assert (done.status, server.calls, bench.judgments.exists()) == (0, [], False)
        said = {line.split("  ")[0].strip(): line for line in done.out.splitlines()}
        assert said["requests"].split() == [
            "requests",
            "8;",
            "0",
            "more",
            "are",
            "already",
            "judged",
        ]
        tokens_in = int(said["tokens in"].split("about ")[1].split(",")[0])
        tokens_out = 8 * 300
        assert 100 < tokens_in < 1000
        assert f"about {tokens_out:,}, at most {8 * 2048:,}" in said["tokens out"]
        assert f"about {tokens_in + tokens_out}.00, at most" in said["cost"]
        bench.judge(server)
        write_answers(bench.folder / "model_answer", bench.folder / "data", seed=1)
        done = bench.judge(server, "--dry-run")
    assert len(server.calls) == REQUESTS
    assert "requests    8; 8 more are already judged" in done.out
    assert "about 80, at most" in done.out, "10 tokens a judgment, as this judge's rows say"
    assert "give --price-in and --price-out" in done.out


def test_json_lines_stay_whole_when_judgments_come_at_once(bench: Bench) -> None:
    long = "x" * 100_000
    with judge_server(lambda call: says(f"{long} [[5]]")) as server:
        done = bench.judge(server)
    assert all(row["judgment"].startswith(long) for row in done.rows)
    assert all(json.loads(line) for line in bench.judgments.read_text().splitlines())


def test_only_asking_needs_the_client(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("judge", "endpoint"):
        monkeypatch.delitem(sys.modules, f"eval.mt_bench.{name}", raising=False)
        monkeypatch.delattr(sys.modules["eval.mt_bench"], name, raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    with judge_server(rate) as server:
        estimated = bench.judge(server, "--dry-run")
        asked = bench.judge(server)
    assert estimated.status == 0
    assert (asked.status, asked.rows, server.calls) == (2, [], [])
    assert asked.err == (
        "error: judge: the package openai is not installed: pip install 'tddpo-jax[judge]'\n"
    )
