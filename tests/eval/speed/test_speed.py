"""The speed bench: figures that fit together, what it refuses, its suite and its peers' side.

Whatever measures runs in a process of its own, for it chooses how many devices there are.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_models

from eval.speed import __main__ as command
from eval.speed import backends, decoding, suite, training
from eval.speed.case import Case
from eval.speed.comparison import _apart
from eval.speed.peers import _check_same
from eval.speed.suite import run_suite
from eval.speed.table import table
from eval.speed.training import Trainer
from tddpo_jax.batches.layout import Shape, stream_length
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.models.flops import attended_keys

SMALL = (
    *("--width", "64", "--layers", "1", "--heads", "2", "--feed-forward", "64"),
    *("--max-length", "128", "--batch-pairs", "2", "--steps", "1", "--json"),
)
# A peer that answers every step, having scored nothing.
WORKER = """
import json, sys
job = json.load(open(sys.argv[1]))
assert len(job["pairs"]) == job["steps"] * job["batch_pairs"]
for line in sys.stdin:
    print(json.dumps({"seconds": 0.5, "loss": 0.6931472, "logp_chosen": 0, "logp_rejected": 0}))
    sys.stdout.flush()
"""


def tiny_case(**changes):
    """A step of full fine-tuning of `tiny_models.CONFIG` on one of the eight devices."""
    values = {
        "model": tiny_models.CONFIG,
        "data": "none",
        "tokenizer": Path(),
        "max_length": 64,
        "mode": "full",
        "remat": "none",
        "layout": "packed",
        "dtype": "float32",
        "attention": "xla",
        "mesh": MeshConfig(data=1, fsdp=1),
    }
    return Case(**{**values, **changes})


def run(*arguments):
    call = [sys.executable, "-m", "eval.speed", *arguments]
    # As in the tests themselves: what compiles for less than a second is kept as well.
    kept = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return subprocess.run(call, capture_output=True, text=True, check=False, env=kept)


def figures(*arguments):
    """The JSON of a call that must succeed."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def refusal(capsys, monkeypatch, *arguments):
    """The one line of a call that must be refused before anything is measured."""
    monkeypatch.setattr("sys.argv", ["speed", *arguments])
    try:
        status = command.main()
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_figures_of_a_step_fit_together():
    row = figures(*SMALL, "--mode", "lora")
    assert row["pairs_per_second"] == pytest.approx(2 / row["step_seconds"])
    live = row["tokens_per_second"] / row["positions_per_second"]
    assert live == pytest.approx(1 - row["padding_share"])
    assert row["useful_share"] == pytest.approx(row["useful_tflops"] / row["matmul_tflops"])
    assert row["peak_bytes"] > 0
    assert row["reference_seconds"] > 0
    assert {"commit", "device", "load_before"} <= set(row)


def test_nothing_compiles_within_a_step_that_is_timed(monkeypatch):
    """Beside the update, which the first step of the warm-up compiles; the second is longer."""
    pairs = tiny_models.random_examples([(5, 4, 4), (5, 4, 4), (5, 4, 4), (40, 4, 4)])
    shapes = tuple(Shape(1, length, length, 2) for length in (64, 32))
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_mesh", lambda _: tiny_models.one_device())
        trainer = Trainer(tiny_case(batch_pairs=2, steps=1), pairs, shapes)
    # Measured when all is ready: the programs there are as the time begins.
    ready = []
    monkeypatch.setattr(training, "matmul_rate", lambda _: ready.append(set(trainer.compiled)))
    for number in range(2):
        trainer.step(number)
        assert set(trainer.compiled) - ready[-1] <= {("update", ())}
    assert ready[0] < ready[1]


def test_the_small_suite_measures_every_part(tmp_path):
    file = tmp_path / "suite.json"
    made = figures("--suite", "gpu", "--small", "--json", "--output", str(file))
    assert json.loads(file.read_text()) == made
    parts = {row["part"]: row for row in made["rows"]}
    # Back-ends with two kinds of heads, the device, three trainings, decoding.
    assert len(parts) == 2 * 3 + 1 + 3 + 1
    for name, row in parts.items():
        assert not row.get("failed"), row
        if "remat" in name:
            assert row["pairs_per_second"] > 0
            assert row["peak_bytes"] > 0
            assert row["row_length"] == 256
    assert parts["decode"]["tokens_per_second"] > 0


def test_a_suite_without_time_names_what_it_leaves_out(monkeypatch):
    with pytest.raises(ValueError, match="measures one device, but there are 8"):
        next(run_suite(small=True, minutes=9.0))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    rows = list(run_suite(small=True, minutes=0.0))
    assert [row["part"] for row in rows][5] == "decode"
    assert {row["remark"] for row in rows} == {"left out: it would not finish within 0 minutes"}
    with pytest.raises(ValueError, match="there is no GPU"):
        next(run_suite(small=False, minutes=9.0))


def test_where_there_are_more_kernels_a_mode_is_trained_with_each(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert backends.kernels_here() == []
    monkeypatch.setattr(suite, "kernels_here", lambda: ["cudnn", "tokamax"])
    parts = [row["part"] for row in run_suite(small=True, minutes=0.0)]
    assert [part for part in parts if "tokamax" in part] == ["full, remat dots, tokamax"]


def test_a_kernel_that_is_not_here_is_named(kernels_anywhere, monkeypatch):
    """Where there is one at all: on a CPU there is none to miss."""
    monkeypatch.setattr(backends, "kernels_here", lambda: ["cudnn"])
    rows = {row["part"]: row for row in backends.check_backends(16)}
    assert rows["check tokamax"]["remark"].startswith("left out: model.attention: tokamax needs a")
    assert not [row for row in rows.values() if row.get("failed")]
    assert {name for name, _ in kernels_anywhere} == {"cudnn"}


def test_decoding_that_takes_no_time_is_no_figure(monkeypatch):
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: 0.0)
    with pytest.raises(ValueError, match="--new-tokens: 3 take no longer than 1; give more"):
        decoding.measure_decoding(tiny_case(batch_pairs=2, steps=1), 2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--decode", "--profile"], "--decode: cannot be combined with --profile"),
        (["--rows", "4"], "--rows: has no effect without a mode"),
        (["--decode", "--remat", "full"], "--remat: has no effect with --decode"),
        (["--prefix", "--layout", "plain"], "--layout: has no effect with --prefix"),
        (["--suite", "gpu", "--width", "8"], "--width: has no effect with --suite"),
        (["--steps", "0"], "--steps: must be above 0, got 0"),
        (["--heads", "7"], "--heads: 2 x 7 does not divide --width 256"),
        (["--json", "--markdown"], "--markdown: cannot be combined with --json"),
        (["--model", "x", "--width", "8"], "--width: --model gives the shape"),
        (["--output", "no/such/folder/x.json"], "--output: no/such/folder is not a folder"),
        (["--output", "/"], "--output: / cannot be written to"),
        (["--decode", "--new-tokens", "1"], "--new-tokens: must be at least 2, got 1"),
        (["--width", "24", "--heads", "8"], "--heads: 2 x 8 does not divide --width 24"),
        (["--data", "stated", "--tokenizer", "x"], "--tokenizer: has no effect with --data stated"),
        (
            ["--mode", "qlora"],
            "--mode: qlora needs --width and --feed-forward to be multiples of 64",
        ),
    ],
)
def test_what_is_refused(arguments, said, capsys, monkeypatch):
    assert refusal(capsys, monkeypatch, *arguments) == f"error: {said}"


def test_branches_apart_are_the_same_work():
    """Positions: prompt and all but the last token of its response; keys: a triangle of them."""
    pairs = tiny_models.random_examples([(7, 5, 11), (3, 1, 2)])
    branches = iter(_apart(pairs))
    for pair in pairs:
        for response in pair.responses:
            branch, length = next(branches), len(pair.prompt) + len(response) - 1
            assert stream_length(branch) == length
            assert attended_keys(branch) == length * (length + 1) // 2
            np.testing.assert_array_equal(branch.responses, [response])
    assert not list(branches)


def test_a_peer_that_does_other_work_is_refused():
    ours = {"loss": math.log(2), "logps/chosen": -100.0, "logps/rejected": -90.0}
    theirs = {"loss": math.log(2), "logp_chosen": -100.001, "logp_rejected": -90.0}
    _check_same(ours, theirs, "trl")
    with pytest.raises(ValueError, match=r"chosen is -100\.000 here and -101\.000 in trl"):
        _check_same(ours, {**theirs, "logp_chosen": -101.0}, "trl")
    with pytest.raises(ValueError, match=r"trl's first loss is 0\.50000, not log 2"):
        _check_same(ours, {**theirs, "loss": 0.5}, "trl")


def test_a_peer_is_given_the_pairs_and_answers_in_turn(tmp_path):
    """The process that stands for the peer's Python gets `-I`, the worker, the job.

    It has scored nothing. The user is not to blame for that, so it is an error of ours.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/worker.py" "$3"\n')
    python.chmod(0o755)
    done = run(*SMALL, "--against", "trl", "--peer-python", str(python), "--peer-micro-batch", "1")
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: at the first step the mean log-prob of chosen")
    assert done.stderr.endswith("and 0.000 in trl: not the same weights or pairs\n")


def test_a_failure_and_memory_are_told_in_the_table():
    rows = [{"part": "a", "peak_bytes": 2**30}, {"part": "b", "failed": "why"}]
    markdown = table({"speed": "suite", "commit": "c"}, rows, markdown=True).splitlines()
    assert markdown[0] == "speed suite, commit c"
    assert markdown[2] == "| part | peak_gib | remark |"
    assert markdown[4:] == ["| a | 1 | - |", "| b | - | FAILED: why |"]
