"""The `report` command: what is printed, what is withheld, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server, rate
from mt_bench_files import judgment, lines, write_answers, write_data, write_lines
from places import ROOT

from eval.mt_bench.__main__ import main

Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["report", "--judgments", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def full(model: str, shift: int = 0, **ours: Any) -> list[dict[str, Any]]:
    """All 160 rows, in FastChat's keys alone; scores from 4 to 6, and `shift` more."""
    return [
        judgment(model, question, turn, 4 + question % 3 + shift, **ours)
        for question in range(81, 161)
        for turn in (1, 2)
    ]


def test_json_of_fastchats_own_files(tmp_path: Path, report: Report) -> None:
    """81..160 holds 27, 27 and 26 questions of each remainder: (27*4 + 27*5 + 26*6) / 80, by hand
    with 81 % 3 = 0: remainders 0: 27, 1: 27, 2: 26."""
    path = write_lines(tmp_path / "gpt-4_single.jsonl", full("a") + full("b", shift=1))
    status, out, _ = report(path, "--json", "--baseline", "a")
    assert status == 0
    found = json.loads(out)
    assert list(found) == ["a", "b"]
    average = (27 * 4 + 27 * 5 + 26 * 6) / 80
    assert found["a"]["average"] == pytest.approx(average)
    assert found["a"]["turn_1"] == found["a"]["turn_2"] == pytest.approx(average)
    assert (found["a"]["valid"], found["a"]["expected"]) == (160, 160)
    assert found["a"]["sd_over_seeds"] is None
    assert list(found["a"]["categories"]) == [
        "writing",
        "roleplay",
        "reasoning",
        "math",
        "coding",
        "extraction",
        "stem",
        "humanities",
    ]
    low, high = found["a"]["interval"]
    assert low < average < high
    assert "difference" not in found["a"]
    assert found["b"]["difference"]["mean"] == pytest.approx(1)
    assert found["b"]["difference"]["p_value"] < 0.01
    assert found["b"]["difference"]["p_value_holm"] == found["b"]["difference"]["p_value"]


def test_no_headline_while_rows_are_missing(tmp_path: Path, report: Report) -> None:
    rows = full("a") + full("b")[:-3]
    rows[0] |= {"score": -1, "invalid": "no rating"}
    path = write_lines(tmp_path / "j.jsonl", rows)
    status, out, _ = report(path, "--json", "--baseline", "a")
    found = json.loads(out)
    assert status == 0
    for model, invalid, valid in (("a", 1, 159), ("b", 0, 157)):
        entry = found[model]
        assert entry["average"] is entry["turn_1"] is entry["categories"] is None
        assert (entry["valid"], entry["invalid"], entry["expected"]) == (valid, invalid, 160)
    assert "difference" not in found["b"]
    _, out, _ = report(path, "--baseline", "a")
    assert "a: no score: 0 of 160 rows are missing, and 1 have no valid rating" in out
    assert "b: no score: 3 of 160 rows are missing, and 0 have no valid rating" in out
    assert "no comparison with a" in out
    _, out, _ = report(path, "--allow-missing")
    assert "b: the score covers an incomplete set: 3 of 160 rows are missing" in out
    found = json.loads(report(path, "--allow-missing", "--json", "--baseline", "a")[1])
    assert found["b"]["average"] == pytest.approx(sum(r["score"] for r in rows[160:]) / 157)
    assert found["b"]["difference"]["questions"] == 79


def test_seeds_are_joined_by_what_the_rows_say(tmp_path: Path, report: Report) -> None:
    rows = [
        row
        for seed in range(3)
        for row in full(f"dpo-seed0-seed{seed}", seed, model_id="dpo-seed0", seed=seed)
    ]
    path = write_lines(tmp_path / "j.jsonl", rows)
    found = json.loads(report(path, "--json")[1])
    assert list(found) == ["dpo-seed0"]
    assert (found["dpo-seed0"]["seeds"], found["dpo-seed0"]["expected"]) == (3, 480)
    assert found["dpo-seed0"]["sd_over_seeds"] == pytest.approx(1)


def test_duplicates_and_older_answers_do_not_count(tmp_path: Path, report: Report) -> None:
    rows = full("a", request_hash="1")
    stale = [{**row, "score": 1, "request_hash": "0"} for row in rows[:7]]
    doubled = [{**row, "score": 10} for row in rows[:5]]
    plain = report(write_lines(tmp_path / "plain.jsonl", rows), "--json")[1]
    path = write_lines(tmp_path / "j.jsonl", [*stale, *rows, *doubled])
    assert report(path, "--json")[1] == plain
    compat = json.loads(report(path, "--json", "--fastchat-compat")[1])
    assert compat["a"]["rows"] == 160 + 5 + 7


def test_fastchat_compat_prints_fastchats_means(tmp_path: Path, report: Report) -> None:
    rows = [*full("a")[:40], judgment("a", 101, 1, -1)]
    path = write_lines(tmp_path / "gpt-4_single.jsonl", rows)
    status, out, _ = report(path, "--fastchat-compat")
    assert status == 0
    expected = sum(row["score"] for row in rows[:40]) / 40
    assert out.splitlines()[1].split() == ["a", *[f"{expected:.6f}"] * 3, "40", "1"]
    assert report(path, "--fastchat-compat", "--baseline", "a")[0] == 2


def test_what_a_score_is_made_with_is_printed(tmp_path: Path, report: Report) -> None:
    data = write_data(tmp_path / "data")
    for model in ("base", "tuned"):
        for seed in (0, 1):
            write_answers(tmp_path / "model_answer", data, model, seed)
    with judge_server(rate) as server:
        status = main(
            f"judge --judge-model judge --base-url {server.url} --data-dir {data} "
            f"--answers {tmp_path / 'model_answer'}".split()
        )
    assert status == 0
    path = tmp_path / "model_judgment" / "judge_single.jsonl"
    _, out, _ = report(path, "--baseline", "base")
    assert "questions  4, not FastChat's (" in out
    assert "references gpt-4, not FastChat's (" in out
    assert f"judge      judge at {server.url}, answering as judge-2026-01-01" in out
    assert "sampling   temperature 0, max_tokens 2048" in out
    assert "against base" in out
    assert "16 of 16" in out
    assert "judged in another way" not in out

    answers = tmp_path / "model_answer"
    arguments = (path, "--json", "--data-dir", data, "--answers", answers)
    assert json.loads(report(*arguments)[1])["base"]["valid"] == 16
    first = answers / "base-seed0.jsonl"
    first.write_text(first.read_text().replace("answer {b}", "another", 1))
    assert json.loads(report(*arguments)[1])["base"]["valid"] == 15, "not judged since"

    rows = lines(path)
    other = [
        {**row, "parameters": {"max_completion_tokens": 2048}, "system_role": False}
        if row["model_id"] == "tuned"
        else row
        for row in rows
    ]
    _, out, _ = report(write_lines(path, other), "--baseline", "base")
    assert (
        "max_completion_tokens 2048, temperature not accepted, system role not accepted  (tuned)"
        in out
    )
    assert "tuned: judged in another way than base; these differ: sampling" in out


def test_wrong_input(tmp_path: Path, report: Report) -> None:
    path = write_lines(tmp_path / "j.jsonl", full("a"))
    other = write_lines(tmp_path / "k.jsonl", [judgment("a", 81, 1, 5, judge="k")])
    empty = write_lines(tmp_path / "empty.jsonl", [])
    for arguments, said in (
        ((path, other), "--judge-model: the files hold several judges: j, k"),
        ((path, "--judge-model", "z"), "--judge-model z: the files hold only j"),
        ((path, "--baseline", "z"), "--baseline z: was not judged; these were: a"),
        ((empty,), "--judgments: the files hold no judgments"),
        ((tmp_path / "absent",), "absent: No such file"),
    ):
        status, out, err = report(*arguments)
        assert (status, out) == (2, "")
        assert err == f"error: {err[7:].strip()}\n"
        assert said in err
    assert report(path, other, "--judge-model", "j")[0] == 0


def test_the_options_and_a_report_load_no_large_package() -> None:
    names = "{'jax', 'torch', 'openai', 'matplotlib'}"
    code = f"import sys, eval.mt_bench.__main__ as m; print({names} & set(sys.modules))"
    # Where PyTorch could be found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert out.stdout == "set()\n", out.stderr
