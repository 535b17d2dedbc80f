"""Several processes as one job: how they find each other, and how the job ends if one is lost.

A host is a process of JAX's multi-controller runtime. Every host runs the same program over the
devices of all hosts, and holds the parts of arrays that lie on its own devices. All hosts must
start the same computations in the same order. So every value that decides what is computed next
must be the same on all of them. If such a value comes from a file, the first host reads it and
sends it to the others (`agreement.agree`). Only the first host writes files and prints lines.

If one host is lost, the job ends: every other host reports it in one line and exits with status 1.
The same command then resumes the run.

JAX is imported inside the functions, so that programs which only read run directories do without
it.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from tddpo_jax.config.schema import HostsConfig
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system.agreement import whose

# The environment variable in which each launcher gives the number of tasks. Kubernetes is missing
# here and must be named: an indexed job of Kubernetes may also be several separate runs.
TASKS = {"slurm": "SLURM_STEP_NUM_TASKS", "ompi": "OMPI_COMM_WORLD_SIZE"}
CPU_THREADS = 64
SILENT_SECONDS = 10  # time that hosts wait for each other before a line says so
RESUMES = "the same command resumes the run, on the same number of hosts or another"
# The runtime's errors about a broken connection contain one of these words.
SAYS_LOST = re.compile(r"gloo|nccl|unavailable|heartbeat|connection|coordination", re.IGNORECASE)


def is_host(config: HostsConfig) -> bool:
    """Whether this process is a host of a job, by its settings or by its launcher."""
    return config.coordinator is not None or _launcher(config) is not None


def join(config: HostsConfig, tell_parent: Callable[[str], None] | None = None) -> str | None:
    """Joins this process to its job, if it is a host of one.

    Call this before JAX starts its devices.

    Args:
        config: the settings.
        tell_parent: takes the line that explains an abort by JAX's runtime, see `watch.parent`.

    Returns:
        A line about the job; None in a job of one process.

    Raises:
        UserError: JAX cannot join the job through the launcher, or the coordinator's address is
            unknown or in use.
    """
    if not is_host(config):
        return None
    launcher = _launcher(config)
    tell_parent = tell_parent or (lambda _: None)
    import jax

    # Only CPUs read these two settings. By default XLA's collectives on CPUs reach no other
    # process; gloo's do. A collective blocks the thread that takes part in it. With one thread per
    # core, hosts have been seen to wait for ever: each waited for a collective for which the other
    # had no free thread.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    os.environ.setdefault("NPROC", str(max(CPU_THREADS, os.cpu_count() or 1)))
    # This service would catch SIGTERM and only note that the job should save soon. Nothing here
    # reads that note, so the job would not end.
    jax.config.update("jax_enable_preemption_service", False)
    explicit = config.coordinator is not None
    if config.coordinator is not None:
        _check_address(config.coordinator, is_mine=config.index == 0)
    tell_parent(
        f"error: hosts: the processes did not meet within {config.meet_within} s; start all of "
        "them, each with the same hosts.coordinator and hosts.count and with its own hosts.index"
    )
    waiting = threading.Timer(SILENT_SECONDS, _say_we_wait, [config])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.count,
            config.index,
            cluster_detection_method="deactivate" if explicit else launcher,
            initialization_timeout=config.meet_within,
            heartbeat_timeout_seconds=config.lost_after,
        )
    except (ValueError, LookupError, AttributeError) as error:
        # JAX raises these if the launcher's variables or its package are missing.
        raise UserError(
            f"hosts.launcher: JAX cannot join this job through {launcher} ({error}); "
            "set hosts.coordinator, hosts.count and hosts.index"
        ) from None
    finally:
        waiting.cancel()
    if not explicit:
        _see_all_devices_if_alone()
    tell_parent(f"error: {whose()} another host was lost, see its log; {RESUMES}")
    by = config.coordinator if explicit else launcher
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    return f"hosts    {jax.process_count()}, joined by {by}; the first has {devices}"


def _check_address(coordinator: str, *, is_mine: bool) -> None:
    """Raises UserError if the address is unknown, or if its port is in use on the first host."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), None)
        if is_mine:
            socket.create_server(("", int(port))).close()
    except OSError as error:
        raise UserError(f"hosts.coordinator: {coordinator}: {error.strerror}") from None


def _say_we_wait(config: HostsConfig) -> None:
    where = f" for {config.count} hosts at {config.coordinator}" if config.coordinator else ""
    mine = "" if config.index is None else f" as host {config.index}"
    print(
        f"hosts    waiting{where}{mine}, for at most {config.meet_within} s",
        file=sys.stderr,
        flush=True,
    )


def _launcher(config: HostsConfig) -> str | None:
    if config.launcher == "none" or config.coordinator is not None:
        return None
    if config.launcher != "auto":
        return config.launcher
    several = (name for name, tasks in TASKS.items() if int(os.environ.get(tasks, 1)) > 1)
    return next(several, None)


def _see_all_devices_if_alone() -> None:
    """Lets a task that is alone on its machine use all GPUs; JAX would give it only one."""
    import jax

    slurm = [os.environ.get(f"SLURM_STEP_NUM_{what}") for what in ("TASKS", "NODES")]
    alone = slurm[0] is not None and slurm[0] == slurm[1]
    alone = alone or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")


def leave(error: BaseException, status: int | None) -> NoReturn:
    """Ends this host at once.

    At an ordinary exit JAX would wait for the other hosts, which wait for this one.

    Args:
        error: the reason.
        status: the exit status; None if the error has not been reported yet.
    """
    import jax

    if status is None:
        reason = one_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and SAYS_LOST.search(reason):
            reason = f"another host was lost, see its log ({reason})"
        else:
            traceback.print_exception(error)
        print(f"error: {whose()} {reason}; {RESUMES}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if status is None else status)
