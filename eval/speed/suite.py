"""`--suite gpu`: measures everything on one large GPU, in one call and in minutes.

First every back-end of attention is checked. Then the device is measured, and then training and
decoding of a Llama-2-7B with random weights. The plan says what does not fit before anything
compiles. If a part still runs out of memory or fails, its row says so.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tddpo_jax.batches.layout import Example
from tddpo_jax.batches.packing import needed_length
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.flops import measured_matmul_rate
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.planning.memory import arithmetic, longest_row, usable
from tddpo_jax.system.devices import DEVICES, GIB, Device
from tddpo_jax.system.xla_flags import MEMORY_SHARE
from tddpo_jax.weights.locate import model_folder

from .backends import check_backends, kernels_here
from .case import (
    ACCELERATOR_MATMUL_SIZE,
    STATED,
    Case,
    load_pairs,
    shapes_of,
    timed_pairs,
)
from .decoding import READ_SHAPE, copy_bandwidth, measure_decoding, measured_bandwidth
from .model_shape import read_llama
from .training import Trainer, step_figures

# The defaults of our configs come first, because the last parts may be left out, and a part that
# hangs takes the rest with it. Adapters keep less than full fine-tuning, so backward may keep more.
TRAINING = (
    ("full", "dots"),
    ("lora", "dots"),
    ("qlora", "dots"),
    ("lora", "none"),
    ("qlora", "none"),
    ("lora", "full"),
    ("qlora", "full"),
    ("full", "full"),
    ("full", "none"),
)
# On tiny shapes: every mode and every policy of remat, once.
SMALL_TRAINING = (("full", "dots"), ("lora", "none"), ("qlora", "full"))
# The time of a part on an H200, with compilation, before any part has been timed.
USUAL_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of what is measured."""

    model: LlamaConfig
    training: tuple[tuple[str, str], ...]  # modes and policies of remat
    max_length: int
    batch_pairs: int
    row_length: int
    steps: int
    matmul: int
    read_shape: tuple[int, int]
    decoded: tuple[int, int, int]  # rows, tokens of a prompt, new tokens
    checked: int  # tokens of the longest prompt and response in the checks
    usual_seconds: float


def _large() -> Sizes:
    return Sizes(
        model=read_llama(model_folder("meta-llama/Llama-2-7b-hf")),
        training=TRAINING,
        max_length=2048,
        batch_pairs=128,
        row_length=8192,
        # A step takes about 16 s (full) or 8 s (adapters). Two steps warm up before it.
        steps=1,
        matmul=ACCELERATOR_MATMUL_SIZE,
        read_shape=READ_SHAPE,
        decoded=(80, 128, 128),
        checked=300,
        usual_seconds=USUAL_SECONDS,
    )


def _small() -> Sizes:
    model = dataclasses.replace(
        _large().model,
        vocabulary=512,
        width=64,
        layers=2,
        heads=2,
        key_value_heads=2,
        head_size=32,
        feed_forward=128,
    )
    return Sizes(
        model=model,
        training=SMALL_TRAINING,
        max_length=64,
        batch_pairs=4,
        row_length=256,
        steps=1,
        matmul=256,
        read_shape=(512, 512),
        decoded=(4, 8, 64),
        checked=32,
        usual_seconds=1.0,
    )


def run_suite(*, small: bool, minutes: float) -> Iterator[dict[str, Any]]:
    """Yields rows of figures for each part, as soon as it is measured.

    Args:
        small: whether to use tiny shapes, on any device.
        minutes: the time limit. A part that would probably end later is left out, and its row says
            so.

    Raises:
        UserError: there is no GPU, or more than one device.
    """
    if jax.device_count() > 1:
        raise UserError(
            f"--suite gpu: measures one device, but there are {jax.device_count()}; "
            "set CUDA_VISIBLE_DEVICES=0"
        )
    if jax.default_backend() == "cpu" and not small:
        raise UserError("--suite gpu: there is no GPU; --small runs it on a CPU")
    start = time.monotonic()
    sizes = _small() if small else _large()
    longest = sizes.usual_seconds
    for name, part in _parts(sizes).items():
        began = time.monotonic()
        if began + longest > start + 60 * minutes:
            yield {
                "part": name,
                "remark": f"left out: it would not finish within {minutes:g} minutes",
            }
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = _guarded(name, part)
        # Checks and rates are quick, so they do not shorten the estimate for training.
        longest = max(longest, time.monotonic() - began)
        rows[-1]["part_seconds"] = time.monotonic() - began
        yield from rows


def _parts(sizes: Sizes) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """All parts, the most important first."""

    def training(
        mode: str, remat: str, attention: str = "auto"
    ) -> Callable[[], list[dict[str, Any]]]:
        return lambda: [_training(_case(sizes, mode, remat, attention))]

    other_kernels = [name for name in kernels_here() if name != "cudnn"]

    return {
        "checks": lambda: check_backends(sizes.checked),
        "device": lambda: [_device(sizes)],
        **{f"{mode}, remat {remat}": training(mode, remat) for mode, remat in sizes.training[:3]},
        "decode": lambda: [_decode(sizes)],
        **{f"full, remat dots, {name}": training("full", "dots", name) for name in other_kernels},
        **{f"{mode}, remat {remat}": training(mode, remat) for mode, remat in sizes.training[3:]},
    }


def _guarded(name: str, part: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The part's rows, or a row with the reason why there are none. No failure ends the suite."""
    try:
        return [{"part": name, **row} for row in part()]
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
        if "RESOURCE_EXHAUSTED" in reason or "out of memory" in reason.lower():
            return [{"part": name, "remark": f"out of memory: {reason}"}]
        return [{"part": name, "failed": f"{type(error).__name__}: {reason}"}]
    finally:
        gc.collect()  # what the part held on the device


def _device(sizes: Sizes) -> dict[str, Any]:
    matmul = measured_matmul_rate(jnp.bfloat16, sizes.matmul)
    read, copy = measured_bandwidth(sizes.read_shape), copy_bandwidth(sizes.read_shape)
    return {
        "matmul_tflops": matmul / 1e12,
        "read_bytes_per_second": read,
        "copy_bytes_per_second": copy,
        "remark": f"matmul {matmul / 1e12:.4g} TFLOP/s, read {read / 1e12:.3g} TB/s, "
        f"copy {copy / 1e12:.3g} TB/s",
    }


def _decode(sizes: Sizes) -> dict[str, Any]:
    case = _case(sizes, "full", "none", "auto")
    figures = measure_decoding(case, *sizes.decoded, sizes.read_shape)
    share = figures["bandwidth_share"]
    remark = f"{figures['rows']} rows" + (f", {share:.3f} of the bandwidth" if share else "")
    return {**figures, "step_seconds": figures["decode_step_seconds"], "remark": remark}


def _case(sizes: Sizes, mode: str, remat: str, attention: str) -> Case:
    return Case(
        model=sizes.model,
        data=STATED,
        tokenizer=Path(),
        max_length=sizes.max_length,
        batch_pairs=sizes.batch_pairs,
        mode=mode,
        remat=remat,
        layout="packed",
        dtype="bfloat16",
        attention=attention,
        steps=sizes.steps,
        mesh=MeshConfig(data=1, fsdp=1),
        row_length=sizes.row_length,
        matmul_size=sizes.matmul,
    )


def _training(case: Case) -> dict[str, Any]:
    """The figures of one mode, or a remark if the plan says that it does not fit."""
    pairs, device = load_pairs(case), _this_device()
    config = _config(case)
    row_length = _fitting_row(case, config, pairs, device)
    if row_length is None:
        return {"remark": f"does not fit in {usable(device) / GIB:.1f} GiB, by the plan"}
    case = dataclasses.replace(case, row_length=row_length)
    shapes = shapes_of(case, pairs)
    planned = arithmetic(config, case.model, shapes[0]).peak
    figures = step_figures(Trainer(case, timed_pairs(case, pairs), shapes))
    return {"row_length": row_length, "planned_bytes": planned, **figures}


def _fitting_row(case: Case, config: Config, pairs: list[Example], device: Device) -> int | None:
    """The case's row length, or the longest that fits by the plan; None if a pair needs more."""
    longest = longest_row(config, case.model, shapes_of(case, pairs)[0], usable(device))
    assert case.row_length is not None
    row_length = min(case.row_length, longest)
    needed = max(needed_length(pair, plain=False) for pair in pairs)
    return row_length if row_length >= needed else None


def _config(case: Case) -> Config:
    return resolve(
        {
            "model": {"remat": case.remat},
            "data": {"max_length": case.max_length, "row_length": case.row_length},
            "train": {"mode": case.mode, "batch_pairs": case.batch_pairs},
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        }
    )


def _this_device() -> Device:
    """This device, with the memory that JAX may take of it."""
    known = DEVICES["h200-141"]
    statistics = jax.devices()[0].memory_stats()
    if statistics is None:  # a CPU
        return known
    return dataclasses.replace(known, memory=int(statistics["bytes_limit"] / float(MEMORY_SHARE)))
