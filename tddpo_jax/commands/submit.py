"""Trains the cells of an experiment on a cluster, by an array of jobs that share one directory.

Every job runs the same experiment and takes the cells that no other job has claimed, see
`runs/locks.py`. So the number of jobs, their start and their end may be anything. A job that
reaches its time limit or is preempted is queued again and resumes. This needs the package submitit
(extra `slurm`). This module does not start JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.runs.grid_directory import cell_directories, output_of, record_grid
from tddpo_jax.runs.run_directory import JOBS_FOLDER
from tddpo_jax.system.paths import ABOVE
from tddpo_jax.system.xla_flags import set_flags

CLUSTERS = ("slurm", "local")
# How often a job may reach its time limit and be queued again.
TIME_LIMITS = 100


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What the jobs request from the cluster; None leaves the choice to the cluster."""

    cluster: str  # one of `CLUSTERS`
    workers: int = 1  # number of jobs
    hours: float = 24.0  # time limit of a job
    gpus: int | None = None  # GPUs per job
    cpus: int | None = None  # CPUs per job
    memory: float | None = None  # GiB per job
    sbatch: Sequence[str] = ()  # other options of sbatch, each NAME=VALUE


def add_submission(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `Jobs`; they are not part of the run and may change when it resumes."""
    group = parser.add_argument_group(
        "jobs on a cluster", "submitit starts the jobs; they share the cells and train each once"
    )
    group.add_argument(
        "--submit", choices=CLUSTERS, help="submit jobs and return at once, instead of training"
    )
    # An option that is not given leaves no attribute, so `jobs_of` can refuse those given without
    # `--submit`.
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add("--submit-workers", type=int, metavar="N", help="number of jobs (default 1)")
    add("--submit-hours", type=float, metavar="H", help="time limit of a job (default 24)")
    add("--submit-gpus", type=int, metavar="N", help="GPUs per job (default: the cluster's)")
    add("--submit-cpus", type=int, metavar="N", help="CPUs per job (default: the cluster's)")
    add("--submit-memory", type=float, metavar="GIB", help="GiB per job (default: the cluster's)")
    sbatch = "other options of sbatch, such as partition=gpu account=me constraint=h100"
    add("--submit-sbatch", nargs="+", metavar="NAME=VALUE", help=sbatch)


def jobs_of(arguments: argparse.Namespace) -> Jobs | None:
    """The jobs that the options ask for; None without `--submit`.

    Raises:
        UserError: an option of jobs is given without `--submit`, or is out of bounds.
    """
    given: dict[str, Any] = {
        name.removeprefix("submit_"): value
        for name, value in vars(arguments).items()
        if name.startswith("submit_")
    }
    if arguments.submit is None:
        if given:
            raise UserError(f"submit-{next(iter(given))}: needs --submit")
        return None
    for name in ("workers", "hours", "cpus", "memory"):
        if given.get(name, 1) <= 0:
            raise UserError(f"submit-{name}: must be above 0, got {given[name]}")
    for setting in given.get("sbatch", ()):
        if not setting.partition("=")[2]:
            raise UserError(f"submit-sbatch: must be NAME=VALUE, got {setting!r}")
    return Jobs(arguments.submit, **given)


def submit(settings: dict[str, Any], jobs: Jobs) -> list[Any]:
    """Starts the jobs and returns submitit's objects for them; none if every cell is finished.

    The jobs get the settings as they are now. Later changes of the YAML file do not reach them.

    Args:
        settings: the settings of the experiment, not yet validated.
        jobs: what the jobs request from the cluster.

    Raises:
        UserError: a setting is wrong, a directory holds a run of another configuration, submitit
            is not installed, or there is no cluster.
    """
    directories = cell_directories(settings)
    executor = _executor(output_of(directories) / JOBS_FOLDER, jobs)
    if all(directory.summary for directory in directories):
        return []
    # The jobs would all write this file at their start. It is written before they exist.
    record_grid(directories)
    try:
        with executor.batch():
            started = [executor.submit(Worker(settings)) for _ in range(jobs.workers)]
    except _submitit().core.utils.FailedJobError as error:
        raise UserError(f"submit: sbatch refused the jobs: {error}") from None
    return started


@dataclasses.dataclass(frozen=True)
class Worker:
    """One job; submitit pickles it."""

    settings: dict[str, Any]

    def __call__(self) -> None:
        """Trains until every cell is finished."""
        set_flags()
        # These modules import JAX, which reads the flags when it starts.
        from tddpo_jax.experiments.grid import run_experiment
        from tddpo_jax.system.console import Screen

        run_experiment(self.settings, Screen())

    def checkpoint(self) -> Any:
        """Gives submitit the same job to queue again, after a time limit or a preemption."""
        return _submitit().helpers.DelayedSubmission(self)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "submit: the package submitit is not installed: pip install 'tddpo-jax[slurm]'"
        ) from None
    return submitit


def _executor(folder: Path, jobs: Jobs) -> Any:
    submitit = _submitit()
    if jobs.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("submit: SLURM is not available: sbatch or srun is not on the path")
    executor = submitit.AutoExecutor(
        folder, cluster=jobs.cluster, slurm_max_num_timeout=TIME_LIMITS
    )
    # The package need not be installed where the jobs run. They find it where it is now.
    path = os.pathsep.join(filter(None, (str(ABOVE), os.environ.get("PYTHONPATH"))))
    sbatch = dict(setting.split("=", 1) for setting in jobs.sbatch)
    executor.update_parameters(
        name=f"tddpo-{folder.parent.name}",
        timeout_min=round(60 * jobs.hours),
        gpus_per_node=jobs.gpus,
        cpus_per_task=jobs.cpus,
        mem_gb=jobs.memory,
        stderr_to_stdout=True,
        slurm_setup=[f"export PYTHONPATH={shlex.quote(path)}"],
        slurm_array_parallelism=jobs.workers,
        slurm_additional_parameters=sbatch or None,
    )
    return executor
