"""The real training step, compiled for devices that are not here, on weights that are only shapes.

XLA's own account of such a program says what a run will need: how much memory on every device, and
which collectives and kernels it will call. Virtual CPU devices stand in for any accelerator; for
NVIDIA GPUs the CUDA plug-in compiles the program itself, with no GPU in the machine. It models no
autotuning and no workspace of cuDNN.

Run as a program, because JAX settles on its devices once in a process: a JSON job as the argument,
a JSON report as the last line of stdout.
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
from tddpo_jax.config.schema import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.placement.computation import compute_dtype
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.planning.abstract import Step, abstract_step, bytes_of_device
from tddpo_jax.system.devices import DEVICES, Device, target_config
from tddpo_jax.system.xla_flags import flags_left_to_us
from tddpo_jax.weights.hugging_face import read_config

DEVICES_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one step, in bytes of each device."""

    resident: int  # weights, optimiser, sums of gradients, a micro-batch: there all the time
    gradients: int  # beside them while a micro-batch is computed
    update: int  # beside them while the optimiser updates
    seconds: float  # of lowering and compiling both

    @property
    def peak(self) -> int:
        return self.resident + max(self.gradients, self.update)


# ---- shapes on shardings -------------------------------------------------------------------------


# ---- the step ------------------------------------------------------------------------------------


def lower_gradients(step: Step) -> jax.stages.Lowered:
    """The gradients of one micro-batch, added to the sums: where the time and the memory go."""
    return step.program.add_gradients.lower(  # type: ignore[attr-defined]
        step.sums, step.state, step.frozen, step.knobs, step.batch, step.totals, None
    )


def lower_update(step: Step) -> jax.stages.Lowered:
    """The optimiser's update."""
    return step.program.update.lower(  # type: ignore[attr-defined]
        step.state, step.sums, step.knobs, step.totals
    )


class CompiledStep(NamedTuple):
    """Both halves of a step, and what they need."""

    gradients: jax.stages.Compiled
    update: jax.stages.Compiled
    report: Report


def compile_step(step: Step) -> CompiledStep:
    """Compiles the gradients of a micro-batch, and the update, with the flags of a run."""
    start = time.perf_counter()
    options: Any = flags_left_to_us()
    rows: Any = step.batch.tokens.sharding
    # tokamax looks there for the kind of GPU that it lowers for.
    with jax.default_device(rows.mesh.devices.flat[0]):
        lowered = lower_gradients(step), lower_update(step)
    gradients, update = (one.compile(compiler_options=options) for one in lowered)
    seconds = round(time.perf_counter() - start, 1)
    resident = bytes_of_device([step.sums, step.state, step.frozen, step.batch])
    beside = beside_arguments(gradients), beside_arguments(update)
    return CompiledStep(gradients, update, Report(resident, *beside, seconds))


def beside_arguments(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program needs beside what it is given; outputs that replace inputs are free."""
    memory = compiled.memory_analysis()
    assert memory is not None
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + new_outputs


# ---- devices -------------------------------------------------------------------------------------


def hosts_of(count: int) -> int:
    """Hosts that so many devices are spread over, as many on each.

    Raises:
        UserError: they cannot be.
    """
    hosts = -(-count // DEVICES_OF_A_HOST)
    if count % hosts:
        raise UserError(
            f"mesh: {count} devices are no whole number for each of {hosts} hosts, "
            f"which have at most {DEVICES_OF_A_HOST}"
        )
    return hosts


def gpus(device: Device, count: int) -> list[jax.Device]:
    """GPUs to compile for, none of them in this machine.

    Raises:
        ImportError: the CUDA plug-in is not installed.
        UserError: hosts cannot share so many evenly.
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
    """Whether JAX's CUDA plug-in is here, with or without a GPU."""
    import importlib.util

    return any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13)
    )


# ---- another process -----------------------------------------------------------------------------


def start(job: dict[str, Any]) -> subprocess.Popen[str]:
    """Compiles in a process of its own; see `result`.

    Args:
        job: `config`, `model` (a folder), `device` (a name, or None for virtual CPU devices),
            `devices` (their number), `shape`, `attention` (on the device), `members`.
    """
    command = [sys.executable, "-m", "tddpo_jax.planning.compiler", json.dumps(job)]
    # Else JAX's last line is not the error's.
    environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def result(process: subprocess.Popen[str]) -> Report:
    """The report of a started job.

    Raises:
        RuntimeError: it failed; the message is the last line of its errors, or the signal.
    """
    out, errors = process.communicate()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RuntimeError(f"compiling was ended by {name}; memory of this machine may not suffice")
    if process.returncode:
        raise RuntimeError(f"compiling failed: {errors.strip().rpartition(chr(10))[2]}")
    return Report(**json.loads(out.strip().rpartition("\n")[2]))


def main() -> None:
    job = json.loads(sys.argv[1])
    # GPUs are compiled for, never used; and a program out of a cache gives no account of itself.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if job["device"] is None:
        jax.config.update("jax_num_cpu_devices", job["devices"])
        devices, attention = jax.devices(), "xla"
    else:
        devices, attention = gpus(DEVICES[job["device"]], job["devices"]), job["attention"]
    config = resolve(job["config"])
    dtype = compute_dtype(config.model.dtype, on_cpu=False)
    widths = tuple((width, count) for width, count in job["shape"].pop("causal_rows"))
    shape = Shape(**job["shape"], causal_rows=widths if attention in KERNELS else ())
    mesh = make_mesh(config.mesh, devices)
    model = read_config(Path(job["model"]))
    step = abstract_step(config, model, mesh, shape, attention, dtype, job["members"])
    print(json.dumps(dataclasses.asdict(compile_step(step).report)))


if __name__ == "__main__":
    main()
