"""The time of a run by arithmetic: operations, memory traffic, and what devices send each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.batches.packing import pack, padding_share
from tddpo_jax.config.schema import Config
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.flops import forward_flops, matmul_parameters, useful_flops
from tddpo_jax.planning.compiler import DEVICES_OF_A_HOST
from tddpo_jax.planning.memory import Memory, planned_dtype
from tddpo_jax.system.devices import Device
from tddpo_jax.training.step_order import Order, make_order

# Of the data sheet's matmul rate: the best published JAX training of Llama-2-7B on H100s reaches
# 0.49 (487 TFLOP/s a GPU, JAX-Toolbox MaxText).
EXPECTED_SHARE = 0.45
# XLA computes products of float32 as TF32 on these devices, at half that rate.
FLOAT32_SHARE = 0.5
# Bytes per second of each device to those of other hosts: a card of 400 Gb/s for each.
NETWORK = 50e9


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done, on whatever devices."""

    order: Order
    micro_batches: float  # of a step
    padding: float
    forward: float  # operations of an example without gradients
    flops: float  # useful ones of an example in training, of one policy
    members: int


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a run, or of the runs of a population together."""

    floor: float  # useful operations at the data sheet's rate
    expected: float  # with recomputation and padding, at `EXPECTED_SHARE` of that, and `memory`
    memory: float  # reading and writing weights, sums and moments
    moving: float  # weights and gradients between devices, were nothing hidden


def work_of(
    config: Config,
    model: DecoderConfig,
    examples: list[Example],
    shapes: Sequence[Shape],
    members: int,
) -> Work:
    """The steps, their micro-batches and operations, padding from the first few steps."""
    order = make_order(config, len(examples))
    first_steps = range(min(4, order.total_steps))
    steps = [pack(order.examples_of(examples, step), shapes) for step in first_steps]
    frozen = config.train.mode != "full"
    forward = float(np.mean([forward_flops(model, each) for each in examples]))
    flops = float(np.mean([useful_flops(model, each, frozen_base=frozen) for each in examples]))
    return Work(
        order=order,
        micro_batches=float(np.mean([len(batches) for batches in steps])),
        padding=padding_share([batch for batches in steps for batch in batches]),
        forward=forward,
        # The exact KL has the reference's logits computed in the step.
        flops=flops + (forward if config.loss.exact_kl else 0.0),
        members=members,
    )


def expected_time(
    config: Config, model: DecoderConfig, device: Device, work: Work, memory: Memory
) -> Time:
    """Seconds of the reference pass and the training steps, without loading and validation."""
    sizes, full, order = config.mesh.model_dump(), config.train.mode == "full", work.order
    devices, itemsize = math.prod(sizes.values()), planned_dtype(config).itemsize
    rate = devices * device.rate * (FLOAT32_SHARE if itemsize == 4 else 1)
    trained_on = work.members * order.total_steps * order.batch_pairs
    recomputed = work.forward if config.model.remat == "full" else 0.0
    reference = work.forward * order.examples
    training = (work.flops + recomputed) * trained_on / (1 - work.padding)
    through_memory = _traffic(config, model, memory, work) * order.total_steps / device.bandwidth
    # A layer is brought together forward and backward, and its gradients are shared out.
    weights = itemsize * matmul_parameters(model) / sizes["tensor"]
    trips = (3 if full else 2) if sizes["fsdp"] > 1 else 0
    moved = trips * weights * (sizes["fsdp"] - 1) / sizes["fsdp"]
    link = device.link if devices <= DEVICES_OF_A_HOST else min(device.link, NETWORK)
    return Time(
        floor=(work.flops * trained_on + reference) / rate,
        expected=(training + reference) / (rate * EXPECTED_SHARE) + through_memory,
        memory=through_memory,
        moving=moved * work.micro_batches * order.total_steps / link,
    )


def _traffic(config: Config, model: DecoderConfig, memory: Memory, work: Work) -> float:
    """Bytes that a step reads and writes of a device's memory beside activations.

    An update reads weights, two moments and, for the norm and for itself, the sums; it writes all
    but the sums, which the next step fills with zeros. A micro-batch reads and writes the sums, and
    in every pass over the layers reads them as they are stored, writes them as they are used unless
    that is the same, and reads them so.
    """
    trained = memory.trained + memory.adapters
    used = planned_dtype(config).itemsize * matmul_parameters(model)
    used //= config.mesh.tensor
    stored = 0 if config.train.mode == "lora" else memory.trained + memory.frozen + used
    passes = 3 if config.model.remat == "full" else 2
    return 9 * trained + work.micro_batches * (2 * trained + passes * (stored + used))
