"""Runs the `judge` command on a small benchmark, against a local server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer
from last_options import last_of_each
from mt_bench_files import lines, write_answers, write_data

from eval.mt_bench.__main__ import main

KEY = "sk-secret-0123456789abcdef"
REQUESTS = 8  # 4 questions x 2 turns


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str
    rows: list[dict[str, Any]]


def run(arguments: list[str]) -> int:
    """Runs a command and returns its exit status. argparse exits by itself on a wrong command."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return int(str(stopped.code))


@dataclass
class Bench:
    """A benchmark with answers, on which the `judge` command can run."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def judgments(self) -> Path:
        return self.folder / "model_judgment" / "judge_single.jsonl"

    def judge(self, server: JudgeServer, *options: str) -> Outcome:
        arguments = (
            f"judge --judge-model judge --data-dir {self.folder / 'data'} "
            f"--answers {self.folder / 'model_answer'} --base-url {server.url}"
        )
        status = run(last_of_each([*arguments.split(), *options]))
        said = self.capsys.readouterr()
        rows = lines(self.judgments) if self.judgments.exists() else []
        return Outcome(status, said.out, said.err, rows)


def make_bench(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Makes four questions, one model's answers under one seed, and a key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    data = write_data(folder / "data")
    write_answers(folder / "model_answer", data)
    return Bench(folder, capsys)
