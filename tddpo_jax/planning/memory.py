"""Computes the memory of a run by arithmetic: the bytes on each device, and the longest rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.losses.logprobs import CHUNK
from tddpo_jax.models.architecture import DecoderConfig, Layer, expert_layers, kinds_of_layers
from tddpo_jax.models.experts.chunks import choices_of_part
from tddpo_jax.models.flops import layer_weights
from tddpo_jax.placement.computation import compute_dtype
from tddpo_jax.placement.mesh import row_devices
from tddpo_jax.placement.shardings import bytes_of_device, on, tree_shardings
from tddpo_jax.planning.abstract import abstract_model, abstract_weights, placed
from tddpo_jax.system.devices import Device
from tddpo_jax.training.optimizer import make_optimizer

# The share of memory for the CUDA context, NCCL, cuDNN's workspaces and fragmentation.
SPARE_SHARE = 0.09
ROW_STEP, LONG_ROW = 1024, 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, for all policies of a population together."""

    trained: int  # trained weights, if there are no adapters
    adapters: int  # trained adapters
    frozen: int  # frozen weights
    reference: int  # the initial trained parameters, which a loss with an exact KL needs
    optimizer: int  # the optimiser's moments
    sums: int  # sums of gradients
    gathered: int  # layers in use, gathered or copied, the head, and logits
    experts: int  # what experts compute at once
    activations: int  # activations of a micro-batch

    @property
    def resident(self) -> int:
        """Bytes in use all the time."""
        trained = self.trained + self.adapters + self.optimizer + self.sums
        return trained + self.frozen + self.reference

    @property
    def peak(self) -> int:
        """Bytes in use while gradients are computed."""
        return self.resident + self.gathered + self.experts + self.activations


def usable(device: Device) -> int:
    """Bytes of a device's memory that a run may use."""
    return int(device.memory * (1 - SPARE_SHARE))


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh of these sizes, without devices."""
    sizes = config.model_dump()
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def arithmetic(config: Config, model: DecoderConfig, shape: Shape, members: int = 1) -> Memory:
    """Estimates the memory of one device while it computes a micro-batch.

    Args:
        config: settings of the run, whose mesh has no open axis.
        model: the model's shape.
        shape: shape of the micro-batch.
        members: number of policies that train in one program.

    Returns:
        The bytes by purpose.
    """
    mesh = abstract_mesh(config.mesh)
    _, *weights = abstract_weights(config, model, planned_dtype(config))
    trained, frozen = (placed(part, model, mesh) for part in weights)
    moments = jax.eval_shape(make_optimizer(config.train, model).init, trained)
    trained_bytes = bytes_of_device(trained)
    tokens = shape.rows * shape.length // row_devices(mesh)
    full = config.train.mode == "full"
    # A population's gradients are not added to the sums in place, so they need memory of their own.
    gradients = members * trained_bytes if members > 1 else 0
    return Memory(
        trained=members * trained_bytes * full,
        adapters=members * trained_bytes * (not full),
        frozen=bytes_of_device(frozen),
        reference=trained_bytes if config.loss.exact_kl else 0,
        optimizer=members * bytes_of_device(on(moments, tree_shardings(moments, model, mesh))),
        sums=members * trained_bytes,
        gathered=_gathered(config, model, members) + gradients,
        experts=members * _experts_at_work(config, model, tokens),
        activations=members * tokens * activations_of_token(config, model),
    )


def separate_reference_bytes(config: Config, reference: DecoderConfig, shape: Shape) -> int:
    """Bytes on one device while the model of `model.reference` scores the data.

    That is before the policy is loaded. Its weights are frozen, as under adapters.

    Args:
        config: settings of the run.
        reference: the shape of that model.
        shape: shape of a micro-batch.
    """
    mesh, dtype = abstract_mesh(config.mesh), planned_dtype(config)
    frozen = config.model_copy(update={"train": config.train.model_copy(update={"mode": "lora"})})
    weights = abstract_model(reference, dtype)
    tokens = shape.rows * shape.length // row_devices(mesh)
    return (
        bytes_of_device(placed(weights, reference, mesh))
        + _gathered(frozen, reference, members=1)
        + _experts_at_work(config, reference, tokens)
    )


def planned_dtype(config: Config) -> Any:
    """The dtype of the computation. All devices in `DEVICES` are accelerators."""
    return compute_dtype(config.model.dtype, on_cpu=False)


def activations_of_token(config: Config, model: DecoderConfig) -> int:
    """Bytes of activations for one token: all layers' kept ones, and those of the layer at work.

    The remat mode decides what each layer keeps. Every mode keeps the layer's input. `dots` also
    keeps queries, keys, values, attention's output, the sum after it, gate and up. `none` keeps
    everything, including the causal rows of attention, which is about 17/4 of what `dots` keeps.
    The layer whose gradients are being computed holds about twenty arrays of the width, including
    norms, causal rows and cotangents, and four arrays of the feed-forward. These numbers are fitted
    to XLA's reports for all modes on 1 and 8 GPUs. Before experts, a device gathers the tokens of
    its fsdp group, and holds them about four and a half times; this is fitted as in
    `_experts_at_work`. The twenty arrays were fitted where attention is as wide as the hidden
    states. DeepSeek's is more than three times as wide, which this leaves out.
    """
    shared, kinds = config.mesh.tensor, list(kinds_of_layers(model))

    def kept(layer: Layer) -> int:
        products = model.width + _products_of_token(layer) // shared
        return {"full": 0, "dots": products, "none": 17 * products // 4}[config.model.remat]

    values = sum(count * (model.width + kept(layer)) for count, layer in kinds)

    def used(layer: Layer) -> int:
        gathered = 0 if layer.experts is None else 9 * model.width * config.mesh.fsdp // 2
        return gathered + 4 * _feed_forward(layer) // shared

    at_work = 20 * model.width + max(used(layer) for _, layer in kinds)
    return planned_dtype(config).itemsize * (values + at_work)


def _products_of_token(layer: Layer) -> int:
    """How many numbers of a token a layer computes and `dots` keeps, besides the hidden states.

    These are attention's output and the outputs of all linear layers that do not add to the hidden
    states.
    """
    linear = [tensor for tensor in layer.tensors if tensor.kind == "linear"]
    outputs = sum(layer.sizes[t.axes[0]] for t in linear if t.axes[0] != "width")
    return outputs + layer.attention.heads * layer.attention.value_size


def _feed_forward(layer: Layer) -> int:
    """Hidden features of a token in the feed-forwards that all tokens use.

    These are the inputs of linear layers that add to the hidden states, without attention's.
    """
    adding = [t.axes for t in layer.tensors if t.kind == "linear" and t.axes[0] == "width"]
    attended = layer.attention.heads * layer.attention.value_size
    return sum(layer.sizes[inputs] for _, inputs in adding) - attended


def _experts_at_work(config: Config, model: DecoderConfig, tokens: int) -> int:
    """Bytes of the choices of tokens that a device computes at once, with their gradients.

    These are about nine arrays of the experts' hidden features. That is fitted to XLA's reports for
    gpt-oss-20b on CPUs, in float32.

    Args:
        config: settings of the run.
        model: the model's shape.
        tokens: number of tokens of a micro-batch on each device.
    """
    found, mesh = expert_layers(model), config.mesh
    if found is None:
        return 0
    _, experts = found
    rows = min(tokens * mesh.fsdp * experts.chosen, choices_of_part(experts.experts))
    return planned_dtype(config).itemsize * 9 * rows * experts.feed_forward // mesh.tensor


def weights_at_work(layer: Layer, fsdp: int) -> int:
    """Number of weights that the products of a layer read on a device that shares none over tensor.

    Linear layers are gathered. Experts are not: each fsdp device has its own.
    """
    weights = layer_weights(layer)
    return weights.shared + weights.experts // fsdp


def _gathered(config: Config, model: DecoderConfig, members: int) -> int:
    """Bytes of the head, a chunk of logits, and the layers in use.

    Gathered layers are freed before the head is computed, so the larger of the two counts. The
    reference of the exact KL needs a head and logits of its own.
    """
    mode, mesh, itemsize = config.train.mode, config.mesh, planned_dtype(config).itemsize
    largest = max(weights_at_work(layer, mesh.fsdp) for _, layer in kinds_of_layers(model))
    layer = itemsize * largest // mesh.tensor
    head = model.vocabulary * model.width // mesh.tensor
    chunk = 4 * CHUNK * model.vocabulary // mesh.tensor
    size = head * (4 + 4 + itemsize if mode == "full" else itemsize) + 3 * chunk * members
    if config.loss.exact_kl:
        size += head * (4 + itemsize if mode == "full" else itemsize) + 3 * chunk * members
    if mesh.fsdp == 1 and mode == "lora":
        return size  # layers are used in place
    return size + layer if mesh.fsdp == 1 else max(size, 2 * layer)


def longest_row(
    config: Config, model: DecoderConfig, shape: Shape, room: int, members: int = 1
) -> int:
    """The longest row that fits, in steps of 1,024 tokens; 0 if none fits.

    Args:
        config: settings of the run.
        model: the model's shape.
        shape: shape of a micro-batch, whose length does not matter.
        room: bytes of one device that the run may use.
        members: number of policies that train in one program.
    """
    # In rows of this length, experts are at work on whole parts. Longer ones need no more for that.
    steps = LONG_ROW // ROW_STEP
    longer = arithmetic(config, model, dataclasses.replace(shape, length=LONG_ROW), members)
    fixed = longer.peak - longer.activations
    return max(0, (room - fixed) * steps // longer.activations) * ROW_STEP
