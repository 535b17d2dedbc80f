"""Jobs on a cluster: what is asked of it, and mistakes; jobs at work: `test_shared_grid.py`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from places import ROOT

from tddpo_jax.__main__ import train_command
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.submit import Jobs, Worker, submit
from tddpo_jax.runs.grid_directory import cell_directories

SBATCH = """#!/bin/sh
cp "$1" "{copy}"
echo "Submitted batch job 12"
"""


def run(*arguments):
    """The exit status of `run.py`, run in this process."""
    try:
        return run_command(train_command, [str(argument) for argument in arguments], resumes=True)
    except SystemExit as exit:  # argparse's way to end
        return exit.code


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A SLURM that takes every job and runs none; the file that it keeps of the job."""
    programs, copy = tmp_path / "bin", tmp_path / "job.sh"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(SBATCH.format(copy=copy))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return copy


def test_an_array_of_jobs_asks_for_what_was_said(cluster, tmp_path, capsys):
    output = tmp_path / "grid"
    options = ("--submit", "slurm", "--submit-workers", 3, "--submit-hours", 1.5)
    more = ("--submit-gpus", 8, "--submit-memory", 64, "--submit-sbatch", "partition=fast", "qos=x")
    assert run("--beta", 0.1, 0.2, "--output", output, *options, *more) == 0
    asked = {line.removeprefix("#SBATCH --") for line in cluster.read_text().splitlines()}
    wanted = {"array=0-2%3", "time=90", "gpus-per-node=8", "mem=64GB", "partition=fast", "qos=x"}
    assert wanted <= asked
    assert f"export PYTHONPATH={ROOT}" in cluster.read_text()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:3]] == [f"slurm job 12_{n}" for n in range(3)]
    # The grid is there before its jobs, which cannot get into each other's way then.
    assert len(json.loads((output / "grid.json").read_text())["cells"]) == 2
    assert run("--beta", 0.1, 0.2, "--output", output, "--submit", "slurm") == 0


def test_nothing_is_submitted_for_a_run_that_is_over(cluster, tmp_path):
    output = tmp_path / "run"
    (directory,) = cell_directories({"output": str(output)})
    output.mkdir()
    text = yaml.safe_dump(directory.config.model_dump(mode="json", exclude={"output"}))
    (output / "config.yaml").write_text(text)
    directory.finish({"state": "finished", "steps": 8})
    assert submit({"output": str(output)}, Jobs("slurm")) == []
    assert not cluster.exists()


def test_submitting_starts_no_jax(cluster, tmp_path):
    program = (
        "import sys; from tddpo_jax.__main__ import train_command; "
        "train_command(sys.argv[1:]); assert 'jax' not in sys.modules"
    )
    arguments = ("--output", tmp_path / "run", "--submit", "slurm")
    command = [sys.executable, "-c", program, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_a_job_at_its_time_limit_is_queued_again_as_it_was():
    worker = Worker({"seed": 3})
    assert worker.checkpoint().function == worker


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--submit-workers", 2), "submit-workers: needs --submit"),
        (("--submit", "local", "--submit-workers", 0), "submit-workers: must be above 0, got 0"),
        (("--submit", "local", "--submit-hours", -1), "submit-hours: must be above 0, got -1.0"),
        (("--submit", "slurm", "--submit-sbatch", "me"), "submit-sbatch: must be NAME=VALUE"),
        (("--submit", "pbs"), "invalid choice: 'pbs'"),
        (("--submit", "slurm", "--beta", -1), "loss.beta: "),
    ],
)
def test_mistakes_are_one_line(options, message, cluster, tmp_path, capsys):
    assert run("--output", tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_slurm_and_no_submitit_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("--output", tmp_path / "run", "--submit", "slurm") == 2
    assert "submit: SLURM is not available" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run("--output", tmp_path / "run", "--submit", "slurm") == 2
    assert "pip install 'tddpo-jax[slurm]'" in capsys.readouterr().err


def test_what_sbatch_says_against_a_job_is_told(cluster, tmp_path, capsys):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    assert run("--output", tmp_path / "run", "--submit", "slurm") == 2
    assert "submit: sbatch refused the jobs: " in (error := capsys.readouterr().err)
    assert "no such partition" in error
