"""Several processes as one job: how they find each other, what they agree on, which one writes.

A host is a process of JAX's multi-controller runtime: every host runs the same program over the
devices of all, holds the part of every array that lies on its own, and has to start the same
computations in the same order. So whatever decides what is computed next must be the same on all of
them: what only a file tells is read by the first host, which tells the others (`agree`). The first
host alone writes files and says lines. A host that is lost ends the job: the others say so in one
line and leave with status 1, and the same command resumes.

JAX is imported where it is used: what only reads run directories goes without it.
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
from tddpo_jax.errors import UserError
from tddpo_jax.system.agreement import whose

# How each launcher tells a task how many there are. Kubernetes is joined on request alone: an
# indexed job may as well mean runs of their own.
TASKS = {"slurm": "SLURM_STEP_NUM_TASKS", "ompi": "OMPI_COMM_WORLD_SIZE"}
CPU_THREADS = 64
SILENT_SECONDS = 10  # of waiting for each other
RESUMES = "the same command resumes, on as many hosts or on others"
# What the runtime's errors about a connection that broke have in them.
SAYS_LOST = re.compile(r"gloo|nccl|unavailable|heartbeat|connection|coordination", re.IGNORECASE)


def is_host(config: HostsConfig) -> bool:
    """Whether the settings, or the launcher that started this process, make it a host of a job."""
    return config.coordinator is not None or _launcher(config) is not None


def join(config: HostsConfig, tell_parent: Callable[[str], None] | None = None) -> str | None:
    """Makes this process one host of a job, if it is; to be called before JAX starts its devices.

    Args:
        config: the settings.
        tell_parent: takes the line that explains an abort by JAX's runtime, see `watch.parent`.

    Returns:
        a line that says which, or None in a job of one process.

    Raises:
        UserError: the settings name a launcher that JAX does not find here.
    """
    if not is_host(config):
        return None
    launcher = _launcher(config)
    tell_parent = tell_parent or (lambda _: None)
    import jax

    # For CPUs; other back-ends read neither. XLA's own default knows no other process, and a thread
    # that takes part in a collective is blocked: with one for each core, hosts have been seen to
    # wait for ever, each for a collective that the other had no thread left to begin.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    os.environ.setdefault("NPROC", str(max(CPU_THREADS, os.cpu_count() or 1)))
    # This service takes SIGTERM for a wish to save soon, and nobody here asks it: a job that was
    # told to end would go on.
    jax.config.update("jax_enable_preemption_service", False)
    explicit = config.coordinator is not None
    if config.coordinator is not None:
        _check_address(config.coordinator, is_mine=config.index == 0)
    tell_parent(
        f"error: hosts: they did not meet within {config.meet_within} s: start all of them, each "
        "with the same hosts.coordinator and hosts.count and an index of its own"
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
        # What JAX raises where the launcher's variables, or its package, are not there.
        raise UserError(
            f"hosts.launcher: JAX does not find this job by {launcher} ({error}); "
            "give hosts.coordinator, hosts.count and hosts.index"
        ) from None
    finally:
        waiting.cancel()
    if not explicit:
        _see_all_devices_if_alone()
    tell_parent(f"error: {whose()} another host was lost, its log says why; {RESUMES}")
    by = config.coordinator if explicit else launcher
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    return f"hosts    {jax.process_count()} by {by}; {devices} on this one, the first"


def _check_address(coordinator: str, *, is_mine: bool) -> None:
    """It must have an address; and the first host, which listens there, its port to itself."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), None)
        if is_mine:
            socket.create_server(("", int(port))).close()
    except OSError as error:
        raise UserError(f"hosts.coordinator: {coordinator}: {error.strerror}") from None


def _say_we_wait(config: HostsConfig) -> None:
    where = f" for {config.count} at {config.coordinator}" if config.coordinator else ""
    mine = "" if config.index is None else f" as host {config.index}"
    print(
        f"hosts    waiting{where}{mine}, until {config.meet_within} s have passed",
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
    """JAX gives each task of a launcher one GPU; a task that has its machine to itself has all."""
    import jax

    slurm = [os.environ.get(f"SLURM_STEP_NUM_{what}") for what in ("TASKS", "NODES")]
    alone = slurm[0] is not None and slurm[0] == slurm[1]
    alone = alone or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")


def leave(error: BaseException, status: int | None) -> NoReturn:
    """Ends this host at once: at an ordinary exit JAX waits for hosts that wait for this one.

    Args:
        error: why.
        status: of the exit, if the error has been told.
    """
    import jax

    if status is None:
        reason = " ".join(str(error).split())
        if isinstance(error, jax.errors.JaxRuntimeError) and SAYS_LOST.search(reason):
            reason = f"another host was lost, its log says why ({reason})"
        else:
            traceback.print_exception(error)
        print(f"error: {whose()} {reason}; {RESUMES}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if status is None else status)
