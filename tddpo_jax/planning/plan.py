"""Plans a run on devices that nobody has rented yet: whether it fits, and how long it takes.

Memory is estimated twice: by arithmetic (`planning/memory.py`) and by the compiler
(`planning/compiler.py`). The lengths of examples are those of the data if it is available, and
otherwise those stated in `planning/lengths.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import subprocess
from pathlib import Path
from typing import Any

import jax

from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.models.attention.kernels import check_shape
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.placement.computation import attention_implementation
from tddpo_jax.placement.mesh import check_mesh, row_devices
from tddpo_jax.planning import compiler
from tddpo_jax.planning.abstract import abstract_weights
from tddpo_jax.planning.compiler import Report, hosts_of
from tddpo_jax.planning.duration import Time, Work, expected_time, work_of
from tddpo_jax.planning.lengths import dataset_or_stated
from tddpo_jax.planning.memory import (
    Memory,
    abstract_mesh,
    arithmetic,
    longest_row,
    planned_dtype,
    separate_reference_bytes,
    usable,
)
from tddpo_jax.system.devices import Device, find_device
from tddpo_jax.training.shared import (
    check_keys,
    check_loss,
    check_own_losses,
    micro_batch_shapes,
)
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder

XLA_CPUS, XLA_CUDA = "XLA, CPUs", "XLA, CUDA"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All results of the verb `plan`. `planning/plan_text.py` prints them."""

    config: Config
    device: str  # the device's name, with the numbers that the user gave
    sheet: Device  # its data sheet
    open_axes: list[str]  # mesh axes without a given size; the plan takes size 1 for them
    model: DecoderConfig
    parameters: int  # number of weights without adapters
    trained: int  # number of trained parameters
    members: int  # number of policies that train in one program
    attention: str  # name of the attention back-end
    lengths: str  # source of the examples' lengths
    examples: list[Example] = dataclasses.field(repr=False)  # far too many to print
    shapes: tuple[Shape, ...]
    work: Work
    memory: Memory  # estimate by arithmetic
    reference: DecoderConfig | None  # shape of the model of `model.reference`, if there is one
    time: Time
    compiled: dict[str, Report]  # reports by the compiler's name
    failed: dict[str, str]  # reasons of compilers that gave no report

    @property
    def peak(self) -> int:
        """Bytes at the peak, by the CUDA compiler if it gave a report, else by arithmetic.

        A separate reference is gone before the policy is loaded, so the larger of both counts.
        """
        return max(self._step, self.separate)

    @property
    def _step(self) -> int:
        return self.compiled.get(XLA_CUDA, self.memory).peak

    @functools.cached_property
    def separate(self) -> int:
        """Bytes while the model of `model.reference` scores the data; 0 without one."""
        if self.reference is None:
            return 0
        return separate_reference_bytes(self.config, self.reference, self.shapes[0])

    @property
    def fits(self) -> bool:
        """Whether the peak fits the device."""
        return self.peak <= usable(self.sheet)

    @property
    def room(self) -> int:
        """Bytes that an estimate by arithmetic may use.

        If the compiler needs more than arithmetic estimates, the difference is kept free.
        """
        return usable(self.sheet) - max(0, self._step - self.memory.peak)

    @property
    def longest_row(self) -> int:
        """The longest row that fits, in tokens."""
        return longest_row(self.config, self.model, self.shapes[0], self.room, self.members)


def make_plan(
    config: Config,
    device: str,
    members: int = 1,
    *,
    memory_gib: float | None = None,
    tflops: float | None = None,
) -> Plan:
    """Plans one cell of an experiment. Its mesh gives the number of devices.

    Args:
        config: settings of the cell, or of one cell of a population.
        device: a name in `DEVICES`.
        members: number of policies that train in one program, see `config.cells.populations`.
        memory_gib: GiB of the device's memory; default: its own.
        tflops: the device's rate as in `find_device`; default: its own.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    device, sheet = find_device(device, memory_gib, tflops)
    check_own_losses([config])
    folder = model_folder(config.model.path)
    model = read_config(folder)
    attention = attention_implementation(config.model, sheet.kind, model)
    separate = config.model.reference
    reference = model if separate is None else read_config(model_folder(separate))
    for _, layer in (*kinds_of_layers(model), *kinds_of_layers(reference)):
        check_shape(attention, layer.attention, sheet.kind)
    asked = config.mesh.model_dump()
    sizes = {axis: max(1, size) for axis, size in asked.items()}
    config = config.model_copy(update={"mesh": MeshConfig(**sizes)})
    hosts_of(math.prod(sizes.values()))
    mesh = abstract_mesh(config.mesh)
    check_mesh(mesh, model)
    check_mesh(mesh, reference)
    dataset, lengths = dataset_or_stated(config, model)
    check_loss(config, dataset)
    shapes = micro_batch_shapes(config, row_devices(mesh), dataset, attention)
    for each in (model, reference):
        check_keys(attention, each, shapes)
    job = {"attention": attention, "members": members, "shape": dataclasses.asdict(shapes[0])}
    memory = arithmetic(config, model, shapes[0], members)
    # A run that cannot fit is not compiled, because compiling may take more memory than this
    # machine has.
    fits = memory.resident <= usable(sheet)
    compilers = _start_compilers(config, folder, sheet, job) if fits else {}
    parameters, trained = parameter_counts(config, model)
    work = work_of(config, model, reference, dataset.train, shapes, members)
    time = expected_time(config, model, sheet, work, memory)
    compiled, failed = _reports(compilers)
    return Plan(
        config=config,
        device=device,
        sheet=sheet,
        open_axes=[axis for axis, size in asked.items() if size != sizes[axis]],
        model=model,
        parameters=parameters,
        trained=trained,
        members=members,
        attention=attention,
        lengths=lengths,
        examples=dataset.train,
        shapes=shapes,
        work=work,
        memory=memory,
        reference=None if separate is None else reference,
        time=time,
        compiled=compiled,
        failed=failed,
    )


# ---- what is planned for -------------------------------------------------------------------------


def parameter_counts(config: Config, model: DecoderConfig) -> tuple[int, int]:
    """The number of the model's weights without adapters, and of trained parameters."""
    trained = abstract_weights(config, model, planned_dtype(config))[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    return parameter_count(model.parameters), count


def _start_compilers(
    config: Config, folder: Path, sheet: Device, job: dict[str, Any]
) -> dict[str, subprocess.Popen[str]]:
    """Starts all compilers at once. Each of them needs about one core."""
    job = {
        **job,
        "config": config.model_dump(mode="json"),
        "model": str(folder),
        "devices": math.prod(config.mesh.model_dump().values()),
    }
    compilers = {XLA_CPUS: compiler.start({**job, "device": None})}
    if compiler.cuda_installed():
        compilers[XLA_CUDA] = compiler.start({**job, "device": dataclasses.asdict(sheet)})
    return compilers


def _reports(
    compilers: dict[str, subprocess.Popen[str]],
) -> tuple[dict[str, Report], dict[str, str]]:
    """The reports of the compilers, and the reasons of those that failed.

    A plan needs none of them, because it also has arithmetic.
    """
    compiled, failed = {}, {}
    for name, process in compilers.items():
        try:
            compiled[name] = compiler.result(process)
        except RuntimeError as error:
            failed[name] = str(error)
    return compiled, failed
