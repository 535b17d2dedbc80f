"""Estimates the time of a run from operations, memory traffic, and traffic between devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.batches.packing import pack, padding_share
from tddpo_jax.config.schema import Config
from tddpo_jax.models.architecture import DecoderConfig, expert_layers, kinds_of_layers
from tddpo_jax.models.flops import forward_flops, layer_weights, useful_flops
from tddpo_jax.planning.compiler import DEVICES_OF_A_HOST
from tddpo_jax.planning.memory import Memory, planned_dtype, weights_at_work
from tddpo_jax.system.devices import Device
from tddpo_jax.training.step_order import Order, make_order

# The share of the data sheet's matmul rate that we expect to reach. The best published JAX training
# of Llama-2-7B on H100s reaches 0.49 (487 TFLOP/s per GPU, JAX-Toolbox MaxText).
EXPECTED_SHARE = 0.45
# XLA computes products of float32 as TF32 on these devices, at half that rate.
FLOAT32_SHARE = 0.5
# Bytes per second from each device to devices of other hosts, with a 400 Gb/s card per device.
NETWORK = 50e9


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a run, which does not depend on the devices."""

    order: Order
    micro_batches: float  # mean number of micro-batches in a step
    padding: float  # share of stream positions that hold no token
    positions: float  # mean number of stream positions in a step, padding included
    forward: float  # mean operations of a forward pass over an example
    reference: float  # mean operations of the reference's pass over an example
    flops: float  # mean useful operations of training one policy on an example
    members: int  # number of policies in one program


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a run, or of the runs of a population together."""

    floor: float  # time of the useful operations at the data sheet's rate
    expected: float  # `memory`, plus all operations and padding at `EXPECTED_SHARE` of that rate
    memory: float  # time to read and write weights, sums and moments
    # Time to move weights, gradients and experts' tokens between devices, if nothing hides it.
    moving: float


def work_of(
    config: Config,
    model: DecoderConfig,
    reference: DecoderConfig,
    examples: list[Example],
    shapes: Sequence[Shape],
    members: int,
) -> Work:
    """Counts the work of a run.

    Args:
        config: settings of the run.
        model: the model's shape.
        reference: shape of the reference, which `model.reference` may name.
        examples: the training examples.
        shapes: shapes of micro-batches, longest first.
        members: number of policies that train in one program.

    Returns:
        The work. Its micro-batches and padding are means over the first few steps.
    """
    order = make_order(config, len(examples))
    first_steps = range(min(4, order.total_steps))
    steps = [pack(order.examples_of(examples, step), shapes) for step in first_steps]
    frozen = config.train.mode != "full"
    forward = _forward(model, examples)
    flops = float(np.mean([useful_flops(model, each, frozen_base=frozen) for each in examples]))
    return Work(
        order=order,
        micro_batches=float(np.mean([len(batches) for batches in steps])),
        padding=padding_share([batch for batches in steps for batch in batches]),
        positions=float(np.mean([sum(each.tokens.size for each in step) for step in steps])),
        forward=forward,
        reference=forward if reference == model else _forward(reference, examples),
        # For the exact KL, each step also computes the reference's logits.
        flops=flops + (forward if config.loss.exact_kl else 0.0),
        members=members,
    )


def expected_time(
    config: Config, model: DecoderConfig, device: Device, work: Work, memory: Memory
) -> Time:
    """Estimates the time of the reference pass and the training steps.

    Loading and validation are left out.

    Args:
        config: settings of the run.
        model: the model's shape.
        device: data sheet of each device; the mesh gives their number.
        work: the work of the run.
        memory: the memory of the run, which gives the memory traffic.
    """
    sizes, full, order = config.mesh.model_dump(), config.train.mode == "full", work.order
    devices, itemsize = math.prod(sizes.values()), planned_dtype(config).itemsize
    rate = devices * device.rate * (FLOAT32_SHARE if itemsize == 4 else 1)
    trained_on = work.members * order.total_steps * order.examples / order.steps_per_epoch
    recomputed = work.forward if config.model.remat == "full" else 0.0
    reference = work.reference * order.examples
    training = (work.flops + recomputed) * trained_on / (1 - work.padding)
    through_memory = _traffic(config, model, memory, work) * order.total_steps / device.bandwidth
    # A layer is gathered in the forward and in the backward pass. With full training, its gradients
    # are scattered too. Experts stay on their devices.
    gathered = sum(count * layer_weights(layer).shared for count, layer in kinds_of_layers(model))
    weights = itemsize * gathered / sizes["tensor"]
    trips = (3 if full else 2) if sizes["fsdp"] > 1 else 0
    moved = trips * weights * (sizes["fsdp"] - 1) / sizes["fsdp"]
    moved = moved * work.micro_batches + _tokens_to_experts(config, model, work)
    link = device.link if devices <= DEVICES_OF_A_HOST else min(device.link, NETWORK)
    return Time(
        floor=(work.flops * trained_on + reference) / rate,
        expected=(training + reference) / (rate * EXPECTED_SHARE) + through_memory,
        memory=through_memory,
        moving=moved * order.total_steps / link,
    )


def _forward(model: DecoderConfig, examples: list[Example]) -> float:
    """The mean operations of a forward pass."""
    return float(np.mean([forward_flops(model, each) for each in examples]))


def _tokens_to_experts(config: Config, model: DecoderConfig, work: Work) -> float:
    """Bytes of tokens that reach a device in a step, to its experts and back.

    The devices of an fsdp group gather their tokens before experts, and scatter the sums. The
    backward pass does both again, and it gathers once more unless everything was kept.
    """
    found, mesh = expert_layers(model), config.mesh
    if found is None:
        return 0.0
    layers, _ = found
    trips = 4 if config.model.remat == "none" else 5
    own = work.positions / (mesh.data * mesh.fsdp)
    return trips * layers * own * (mesh.fsdp - 1) * model.width * planned_dtype(config).itemsize


def _traffic(config: Config, model: DecoderConfig, memory: Memory, work: Work) -> float:
    """Bytes that a step reads from and writes to a device's memory, without activations.

    An update reads the weights, two moments, and the sums twice (for the norm and for itself). It
    writes the weights and the moments. The next step fills the sums with zeros. A micro-batch reads
    and writes the sums. Every pass over the layers reads the stored weights, writes them in the
    dtype of the computation unless they are stored so, and reads those.
    """
    trained = memory.trained + memory.adapters
    fsdp, layers = config.mesh.fsdp, kinds_of_layers(model)
    used = sum(count * weights_at_work(layer, fsdp) for count, layer in layers)
    used = planned_dtype(config).itemsize * used // config.mesh.tensor
    stored = 0 if config.train.mode == "lora" else memory.trained + memory.frozen + used
    passes = 3 if config.model.remat == "full" else 2
    return 9 * trained + work.micro_batches * (2 * trained + passes * (stored + used))
