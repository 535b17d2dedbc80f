"""Damaged files of the benchmark: its requests and scores, or one line that says what is wrong."""

import itertools
import json
from pathlib import Path

import pytest
from damage import odd_json, read_damaged, truncations
from mt_bench_files import judgment, write_answers, write_data

from eval.mt_bench.benchmark import answer_files, load_data
from eval.mt_bench.judgments import Judgment
from eval.mt_bench.report import asked_now, read_judgments, report
from eval.mt_bench.report_text import as_text, fastchat_text
from eval.mt_bench.requests import requests_for
from eval.mt_bench.score import fastchat_scores


@pytest.mark.parametrize(
    "name",
    [
        "data/mt_bench/question.jsonl",
        "data/judge_prompts.jsonl",
        "data/mt_bench/reference_answer/gpt-4.jsonl",
        "answers/tiny-seed0.jsonl",
    ],
)
def test_questions_prompts_references_and_answers(tmp_path: Path, name: str) -> None:
    data = write_data(tmp_path / "data")
    write_answers(tmp_path / "answers", data)

    def read() -> object:
        return [requests_for(load_data(data), one) for one in answer_files([tmp_path / "answers"])]

    file = tmp_path / name
    read()
    first, rest = file.read_bytes().split(b"\n", 1)
    contents = itertools.chain(
        truncations(file.read_bytes(), 9), (odd + b"\n" + rest for odd in odd_json(first))
    )
    usable, tried = read_damaged(file, contents, read)
    assert 0 < usable < tried


def test_judgments(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    answers = write_answers(tmp_path / "answers", data)
    row = Judgment.model_validate(judgment("m", 81, 1, 7)).model_dump() | {
        "data": load_data(data).record,
        "requested": {"temperature": 0, "max_tokens": 9},
        "parameters": {"temperature": 0},
        "generation": {"template": "x", "system": None},
    }
    second = json.dumps(judgment("m", 81, 2, 7)).encode()
    file = tmp_path / "j.jsonl"
    file.write_bytes(json.dumps(row).encode() + b"\n" + second + b"\n")

    def read() -> None:
        rows = read_judgments([file])
        as_text(report(rows, allow_missing=True), None)
        fastchat_text(fastchat_scores(rows))
        asked_now(rows, answer_files([answers]), load_data(data))

    read()
    odd = itertools.islice(odd_json(json.dumps(row)), 0, None, 3)
    contents = itertools.chain(
        truncations(file.read_bytes(), 9), (line + b"\n" + second + b"\n" for line in odd)
    )
    usable, tried = read_damaged(file, contents, read)
    assert 0 < usable < tried
