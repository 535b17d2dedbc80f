"""Compiles the real training step for devices that this machine lacks, with shapes for weights.

XLA reports how much memory the compiled program needs on every device. The program also shows which
collectives and kernels a run will call. Virtual CPU devices can replace any accelerator. For NVIDIA
GPUs the CUDA plug-in compiles the real program, and it needs no GPU in the machine. Its report
includes neither autotuning nor cuDNN's workspaces.

JAX fixes its devices once in a process, so this module runs as a program. It takes a JSON job as
its argument and prints a JSON report as the last line of stdout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.placement.shardings import bytes_of_device
from tddpo_jax.planning.abstract import Step, abstract_step
from tddpo_jax.planning.memory import planned_dtype
from tddpo_jax.system.devices import Device, target_config
from tddpo_jax.system.xla_flags import flags_left_to_us
from tddpo_jax.weights.hugging_face import read_config

DEVICES_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Report:
    """The compiler's report on one step, in bytes of each device."""

    resident: int  # memory in use all the time: weights, optimiser, gradient sums, a micro-batch
    gradients: int  # additional memory while a micro-batch is computed
    update: int  # additional memory while the optimiser updates
    seconds: float  # time to lower and compile both programs

    @property
    def peak(self) -> int:
        return self.resident + max(self.gradients, self.update)


# ---- the step ------------------------------------------------------------------------------------


def lower_gradients(step: Step) -> jax.stages.Lowered:
    """Lowers the gradients of one micro-batch, which take most of a step's time and memory."""
    return step.program.add_gradients.lower(  # type: ignore[attr-defined]
        step.sums, step.state, step.frozen, step.knobs, step.batch, step.totals, None
    )


def lower_update(step: Step) -> jax.stages.Lowered:
    """Lowers the optimiser's update."""
    return step.program.update.lower(  # type: ignore[attr-defined]
        step.state, step.sums, step.knobs, step.totals
    )


class CompiledStep(NamedTuple):
    """The two programs of a step, and the report on them."""

    gradients: jax.stages.Compiled
    update: jax.stages.Compiled
    report: Report


def compile_step(step: Step) -> CompiledStep:
    """Compiles the gradients of a micro-batch and the update, with the XLA flags of a run."""
    start = time.perf_counter()
    options: Any = flags_left_to_us()
    rows: Any = step.batch.tokens.sharding
    # tokamax reads the kind of GPU for which it lowers from the default device.
    with jax.default_device(rows.mesh.devices.flat[0]):
        lowered = lower_gradients(step), lower_update(step)
    gradients, update = (one.compile(compiler_options=options) for one in lowered)
    seconds = round(time.perf_counter() - start, 1)
    resident = bytes_of_device([step.sums, step.state, step.frozen, step.batch])
    beside = beside_arguments(gradients), beside_arguments(update)
    return CompiledStep(gradients, update, Report(resident, *beside, seconds))


def beside_arguments(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program needs beside its arguments. Outputs that replace inputs cost nothing."""
    memory = compiled.memory_analysis()
    assert memory is not None
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + new_outputs


# ---- devices -------------------------------------------------------------------------------------


def hosts_of(count: int) -> int:
    """The number of hosts that hold this number of devices, with equally many on each.

    Raises:
        UserError: the devices cannot be spread evenly.
    """
    hosts = -(-count // DEVICES_OF_A_HOST)
    if count % hosts:
        raise UserError(
            f"mesh: {count} devices cannot be spread evenly over {hosts} hosts, "
            f"which have at most {DEVICES_OF_A_HOST} devices each"
        )
    return hosts


def gpus(device: Device, count: int) -> list[jax.Device]:
    """Descriptions of GPUs to compile for. This machine need not have any.

    Raises:
        ImportError: the CUDA plug-in is not installed.
        UserError: the GPUs cannot be spread evenly over hosts.
    """
    from jax.experimental import topologies

    hosts = hosts_of(count)
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=target_config(device),
        topology=f"1x{hosts}x{count // hosts}",
    )
    return list(topology.devices)


def cuda_installed() -> bool:
    """Whether JAX's CUDA plug-in is installed, with or without a GPU."""
    import importlib.util

    return any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13)
    )


# ---- another process -----------------------------------------------------------------------------


def start(job: dict[str, Any]) -> subprocess.Popen[str]:
    """Starts to compile in a new process. `result` waits for the report.

    Args:
        job: `config`, `model` (a folder), `device` (the fields of a `Device`, or None for virtual
            CPU devices), `devices` (their number), `shape`, `attention` (the back-end on the
            device), `members`.
    """
    command = [sys.executable, "-m", "tddpo_jax.planning.compiler", json.dumps(job)]
    # With filtering, the last line that JAX prints is not the error.
    environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def result(process: subprocess.Popen[str]) -> Report:
    """Waits for a job of `start` and returns its report.

    Raises:
        RuntimeError: the job failed; the message has the last line of its stderr, or the signal.
    """
    out, errors = process.communicate()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RuntimeError(f"{name} ended the compiler; this machine may have too little memory")
    if process.returncode:
        raise RuntimeError(f"compiling failed: {errors.strip().rpartition(chr(10))[2]}")
    return Report(**json.loads(out.strip().rpartition("\n")[2]))


def main() -> None:
    """Compiles the job of the command line and prints its report."""
    job = json.loads(sys.argv[1])
    # GPUs are never used here, only compiled for. A program from the cache has no memory report.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if job["device"] is None:
        jax.config.update("jax_num_cpu_devices", job["devices"])
        devices, attention = jax.devices(), "xla"
    else:
        devices, attention = gpus(Device(**job["device"]), job["devices"]), job["attention"]
    config = resolve(job["config"])
    dtype = planned_dtype(config)
    widths = tuple((width, count) for width, count in job["shape"].pop("causal_rows"))
    shape = Shape(**job["shape"], causal_rows=widths if attention in KERNELS else ())
    mesh = make_mesh(config.mesh, devices)
    model = read_config(Path(job["model"]))
    step = abstract_step(config, model, mesh, shape, attention, dtype, job["members"])
    print(json.dumps(dataclasses.asdict(compile_step(step).report)))


if __name__ == "__main__":
    main()
