"""`judge` killed with SIGKILL while requests are under way, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from judge_server import Call, JudgeServer, Response, judge_server, rate, says
from mt_bench_files import lines, write_answers, write_data
from places import ROOT

CONCURRENCY = 3
REQUESTS = 4 * 5 * 2 * 2  # categories, questions of each, turns, seeds


def start(folder: Path, server: JudgeServer) -> subprocess.Popen[str]:
    arguments = (
        f"-m eval.mt_bench judge --judge-model judge --data-dir {folder / 'data'} "
        f"--answers {folder / 'model_answer'} --base-url {server.url} --concurrency {CONCURRENCY}"
    )
    return subprocess.Popen(
        [sys.executable, *arguments.split()],
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_calls(server: JudgeServer, calls: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.calls) < calls:
        assert time.monotonic() < deadline, "the judge never got that far"
        time.sleep(0.005)


def test_a_killed_run_repeats_nothing_that_was_stored_and_loses_no_row(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", per_category=5)
    for seed in (0, 1):
        write_answers(tmp_path / "model_answer", data, seed=seed)
    judgments = tmp_path / "model_judgment" / "judge_single.jsonl"

    def slow(call: Call) -> Response:
        return says(str(rate(call).body["choices"][0]["message"]["content"]), seconds=0.02)

    with judge_server(slow) as server:
        stored: list[int] = []
        for enough in (15, 40):
            process = start(tmp_path, server)
            wait_for_calls(server, enough)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            whole = judgments.read_text().rpartition("\n")[0].splitlines()
            stored.append(len(whole))
            # As if the kill had come in the middle of a write.
            with judgments.open("a") as file:
                file.write('{"question_id": 81, "model": "tiny-se')
        process = start(tmp_path, server)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert f"{REQUESTS} of {REQUESTS} requests judged" in said
        assert 0 < stored[0] < stored[1] < REQUESTS

        rows = lines(judgments)
        slots = [(row["model"], row["question_id"], row["turn"]) for row in rows]
        assert len(slots) == len(set(slots)) == REQUESTS, "no row lost, none doubled"
        asked = Counter(call.messages for call in server.calls)
        assert len(asked) == REQUESTS
        under_way = 2 * CONCURRENCY
        assert sum(asked.values()) - REQUESTS <= under_way, "only what was in flight is repeated"
