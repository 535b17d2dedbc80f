"""The cells of an experiment on a cluster: an array of jobs that share one grid directory.

Every job runs the same experiment and takes the cells that no other has claimed, see `claims.py`:
it does not matter how many jobs there are, when they start, or which of them die. A job that comes
to its time limit or is preempted is queued again and resumes. By submitit, an extra; starts no JAX.
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
from tddpo_jax.system.paths import CHECKOUT
from tddpo_jax.system.xla_flags import set_flags

CLUSTERS = ("slurm", "local")
# How often a job may come to its time limit.
TIME_LIMITS = 100


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What the jobs ask the cluster for; None leaves it to the cluster."""

    cluster: str
    workers: int = 1
    hours: float = 24.0
    gpus: int | None = None
    cpus: int | None = None
    memory: float | None = None  # GiB
    sbatch: Sequence[str] = ()  # NAME=VALUE


def add_submission(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `Jobs`; they are no part of the run and may change when it is resumed."""
    group = parser.add_argument_group(
        "on a cluster", "by submitit; the jobs share the cells, and train nothing twice"
    )
    group.add_argument(
        "--submit", choices=CLUSTERS, help="do not train here: submit jobs, and return at once"
    )
    # What is not given is not there: `jobs_of` refuses what is given for nothing.
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add("--submit-workers", type=int, metavar="N", help="jobs of the array (default 1)")
    add("--submit-hours", type=float, metavar="H", help="time limit of a job (default 24)")
    add("--submit-gpus", type=int, metavar="N", help="of a job (default: as the cluster says)")
    add("--submit-cpus", type=int, metavar="N", help="of a job (default: as the cluster says)")
    add("--submit-memory", type=float, metavar="GIB", help="of a job (default: likewise)")
    sbatch = "other options of sbatch, such as partition=gpu account=me constraint=h100"
    add("--submit-sbatch", nargs="+", metavar="NAME=VALUE", help=sbatch)


def jobs_of(arguments: argparse.Namespace) -> Jobs | None:
    """What the options say; None: train here.

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
    """Starts the jobs and returns them, submitit's; none if every cell is over.

    The settings are fixed by this call: later changes of their YAML file do not reach the jobs.

    Raises:
        UserError: a setting is wrong, a directory holds a run of another configuration, submitit
            is not installed, or there is no cluster.
    """
    directories = cell_directories(settings)
    executor = _executor(output_of(directories) / JOBS_FOLDER, jobs)
    if all(directory.summary for directory in directories):
        return []
    # Before the jobs do, so that they cannot get into each other's way.
    record_grid(directories)
    try:
        with executor.batch():
            started = [executor.submit(Worker(settings)) for _ in range(jobs.workers)]
    except _submitit().core.utils.FailedJobError as error:
        raise UserError(f"submit: sbatch refused: {error}") from None
    return started


@dataclasses.dataclass(frozen=True)
class Worker:
    """One job, as submitit pickles it."""

    settings: dict[str, Any]

    def __call__(self) -> None:
        """Trains until every cell is over."""
        set_flags()
        # Imported late, for JAX reads the flags when it starts.
        from tddpo_jax.experiments.grid import run_experiment
        from tddpo_jax.system.console import Screen

        run_experiment(self.settings, Screen())

    def checkpoint(self) -> Any:
        """What submitit queues when the job comes to its time limit or is preempted: the same."""
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
        raise UserError("submit: no SLURM here, sbatch or srun is not on the path")
    executor = submitit.AutoExecutor(
        folder, cluster=jobs.cluster, slurm_max_num_timeout=TIME_LIMITS
    )
    # The package need not be installed where the jobs run: it is found where it is now.
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
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
