"""Prints a plan, and suggests settings that make a run fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import needed_length
from tddpo_jax.config.schema import Config
from tddpo_jax.planning.duration import EXPECTED_SHARE
from tddpo_jax.planning.memory import longest_row, separate_reference_bytes, usable
from tddpo_jax.planning.plan import XLA_CPUS, XLA_CUDA, Plan
from tddpo_jax.system.devices import GIB


def as_json(plan: Plan, cells: int) -> dict[str, Any]:
    """The plan for programs, with sizes in bytes and times in seconds.

    Args:
        plan: the plan of one cell.
        cells: number of cells of the experiment.
    """
    return {
        "device": plan.device,
        "mesh": plan.config.mesh.model_dump(),
        "open_axes": plan.open_axes,
        "mode": plan.config.train.mode,
        "remat": plan.config.model.remat,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "lengths": plan.lengths,
        "examples": len(plan.examples),
        "responses": plan.shapes[0].responses,
        "steps": plan.work.order.total_steps,
        "cells": cells,
        "members": plan.members,
        "attention": plan.attention,
        "micro_batches": plan.work.micro_batches,
        "row_length": plan.shapes[0].length,
        "padding": plan.work.padding,
        "flops_per_example": plan.work.flops,
        "separate_reference": plan.separate,
        "arithmetic": {**dataclasses.asdict(plan.memory), "peak": plan.memory.peak},
        "compiled": {
            name: {**dataclasses.asdict(report), "peak": report.peak}
            for name, report in plan.compiled.items()
        },
        "failed": plan.failed,
        "usable": usable(plan.sheet),
        "peak": plan.peak,
        "fits": plan.fits,
        "longest_row": plan.longest_row,
        "time": dataclasses.asdict(plan.time),
    }


def lines(plan: Plan, cells: int) -> Iterator[str]:
    """Yields the lines of the plan for people.

    Args:
        plan: the plan of one cell.
        cells: number of cells of the experiment.
    """
    config, work = plan.config, plan.work
    sizes = config.mesh.model_dump()
    count = math.prod(sizes.values())
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one"
    yield (
        f"model      {config.model.path}: {plan.parameters:,} parameters; {config.train.mode} "
        f"trains {plan.trained:,}"
    )
    what, *names = ("pair", "chosen", "rejected") if _of_pairs(plan) else ("example", "response")
    parts = ([len(each.prompt), *map(len, each.responses)] for each in plan.examples)
    means = [f"{mean:.0f}" for mean in np.mean(list(parts), axis=0)]
    yield (
        f"data       {plan.lengths}; {len(plan.examples):,} {what}s, tokens of "
        f"{', '.join(['prompt', *names])} {', '.join(means)}"
    )
    rows = " or ".join(f"{shape.rows} x {shape.length:,}" for shape in plan.shapes)
    yield (
        f"steps      {work.order.total_steps} of {work.order.per_step} {what}s in "
        f"{work.micro_batches:.1f} micro-batches of {rows} tokens, {work.padding:.1%} padding"
    )
    if plan.members > 1:
        yield f"population {plan.members} policies in one program"
    yield (
        f"devices    {count} x {plan.device}, mesh {mesh}; remat {config.model.remat}, "
        f"attention {plan.attention}"
    )
    for axis in plan.open_axes:
        left = f"mesh.{axis} takes all remaining devices, and this plan assumes 1"
        yield f"           ({left}; use --mesh.{axis} N to plan for N)"
    yield ""
    yield from _table(plan)
    if plan.separate:
        yield (
            f"reference  {config.model.reference} scores the data before the policy is loaded, in "
            f"{plan.separate / GIB:.2f} GiB"
        )
    yield ""
    time = plan.time
    yield (
        f"compute    {work.flops / 1e12:.1f} TFLOP of useful work for each {what}; at least "
        f"{time.floor / 60:.0f} min at the data sheet's rate, about "
        f"{max(time.expected, time.moving) / 60:.0f} min at {EXPECTED_SHARE:.0%} of it"
        f"{_each(plan, cells)}"
    )
    yield (
        f"memory     {time.memory / 60:.1f} min of that reads and writes weights, sums and moments"
    )
    if time.moving:
        share = "hidden behind" if time.moving < time.expected else "MORE THAN"
        yield (
            f"moving     {time.moving / 60:.1f} min of weights, gradients and tokens between "
            f"devices, {share} the computation"
        )
    yield from _verdict(plan)


def _of_pairs(plan: Plan) -> bool:
    return plan.shapes[0].responses == 2


def _each(plan: Plan, cells: int) -> str:
    if cells == 1:
        return ""
    programs = cells // plan.members
    return f", for each of {programs} {'populations' if plan.members > 1 else 'cells'}"


def _table(plan: Plan) -> Iterator[str]:
    memory, reports = plan.memory, plan.compiled
    names = "".join(f"{name:>13}" for name in ("arithmetic", *reports))
    yield f"{'GiB of each device':<44}{names}"
    parts = {
        "weights, trained (float32)": memory.trained,
        "adapters (float32)": memory.adapters,
        "weights, frozen": memory.frozen,
        "reference of the exact KL": memory.reference,
        "optimiser": memory.optimizer,
        "sums of gradients": memory.sums,
        "layers and head in use, logits": memory.gathered,
        "experts in use": memory.experts,
        "activations": memory.activations,
    }
    for label, size in parts.items():
        if size:
            yield f"  {label:<42}{size / GIB:>13.2f}"
    beside = memory.peak - memory.resident
    rows = {
        "always there": (memory.resident, [report.resident for report in reports.values()]),
        "while gradients are computed": (beside, [report.gradients for report in reports.values()]),
        "while the optimiser updates": (0, [report.update for report in reports.values()]),
        "peak": (memory.peak, [report.peak for report in reports.values()]),
    }
    for label, (ours, compiled) in rows.items():
        yield f"{label:<44}" + "".join(f"{size / GIB:>13.2f}" for size in (ours, *compiled))
    if XLA_CPUS in reports:
        yield "  (on CPUs, some versions of XLA keep bfloat16 activations as float32)"
    if reports:
        seconds = "".join(f"{report.seconds:>13.1f}" for report in reports.values())
        yield f"{'seconds to compile':<57}{seconds}"
    for name, reason in plan.failed.items():
        yield f"{name}: unavailable ({reason})"


def _verdict(plan: Plan) -> Iterator[str]:
    device = plan.sheet
    room = f"{usable(device) / GIB:.0f} usable of {device.memory / GIB:.0f} GiB"
    by_xla = XLA_CUDA in plan.compiled and plan.peak > plan.separate
    peak = f"{plan.peak / GIB:.1f} GiB by {'XLA' if by_xla else 'arithmetic'}"
    per_row = plan.shapes[0].rows // (plan.config.mesh.data * plan.config.mesh.fsdp)
    longest = f"rows of up to {plan.longest_row:,} tokens fit, {per_row} on a device"
    if plan.fits:
        yield f"verdict    fits: {peak}, {room}; {longest}"
        return
    yield f"verdict    does NOT fit: {peak}, {room}; try {' or '.join(_changes(plan))}"


def _changes(plan: Plan) -> Iterator[str]:
    """Yields up to three changes of settings with which the run fits, the gentlest first."""
    config, shape = plan.config, plan.shapes[0]
    longest = max(needed_length(example, shape.plain) for example in plan.examples)
    found = 0
    for option, changed in _candidates(config):
        rows = shape.rows * changed.mesh.fsdp // config.mesh.fsdp
        members = plan.members if changed.train.population else 1
        wider = dataclasses.replace(shape, rows=rows)
        limit = longest_row(changed, plan.model, wider, plan.room, members)
        if limit < longest or _reference_is_too_large(plan, changed, wider):
            continue
        yield option if limit >= shape.length else f"{option} --data.row-length {limit}".strip()
        found += 1
        if found == 3:
            return
    if not found:
        yield "another device"


def _reference_is_too_large(plan: Plan, changed: Config, shape: Shape) -> bool:
    """Whether the model of `model.reference` does not fit, whatever the policy needs."""
    if plan.reference is None:
        return False
    return separate_reference_bytes(changed, plan.reference, shape) > usable(plan.sheet)


def _candidates(config: Config) -> Iterator[tuple[str, Config]]:
    def changed(section: str, **settings: Any) -> Config:
        return config.model_copy(
            update={section: getattr(config, section).model_copy(update=settings)}
        )

    yield "", config
    if config.train.population:
        yield "--train.population false", changed("train", population=False)
    if config.model.remat != "full":
        yield "--model.remat full", changed("model", remat="full")
    for mode in {"full": ("lora", "qlora"), "lora": ("qlora",)}.get(config.train.mode, ()):
        yield f"--train.mode {mode}", changed("train", mode=mode)
    for doublings in range(1, 4):
        fsdp = config.mesh.fsdp * 2**doublings
        yield f"--mesh.fsdp {fsdp}", changed("mesh", fsdp=fsdp)
