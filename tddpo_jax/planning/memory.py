"""The memory of a run by arithmetic: what every device holds, and how long its rows may be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.losses.logprobs import CHUNK
from tddpo_jax.models.architecture import DecoderConfig, Layer, kinds_of_layers
from tddpo_jax.models.flops import layer_matmul_parameters
from tddpo_jax.placement.computation import compute_dtype
from tddpo_jax.placement.shardings import tree_shardings
from tddpo_jax.planning.abstract import abstract_weights, bytes_of_device, on, placed
from tddpo_jax.system.devices import Device
from tddpo_jax.training.optimizer import make_optimizer

# Left to the CUDA context, NCCL, cuDNN's workspaces and fragmentation.
SPARE_SHARE = 0.09
ROW_STEP = 1024


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device; what a policy trains, for all policies of a population."""

    trained: int
    adapters: int  # trained as well
    frozen: int
    reference: int  # a copy of what is trained as it began, for a loss with an exact KL
    optimizer: int
    sums: int
    gathered: int  # layers brought together for their use and copies for that, the head, logits
    activations: int

    @property
    def resident(self) -> int:
        trained = self.trained + self.adapters + self.optimizer + self.sums
        return trained + self.frozen + self.reference

    @property
    def peak(self) -> int:
        return self.resident + self.gathered + self.activations


def usable(device: Device) -> int:
    """Bytes that a run may take of a device."""
    return int(device.memory * (1 - SPARE_SHARE))


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh without devices."""
    sizes = config.model_dump()
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def arithmetic(config: Config, model: DecoderConfig, shape: Shape, members: int = 1) -> Memory:
    """Bytes of one device while it works on a micro-batch of this shape, for so many policies."""
    sizes, mesh = config.mesh.model_dump(), abstract_mesh(config.mesh)
    _, *weights = abstract_weights(config, model, planned_dtype(config))
    trained, frozen = (placed(part, model, mesh) for part in weights)
    moments = jax.eval_shape(make_optimizer(config.train, model).init, trained)
    trained_bytes = bytes_of_device(trained)
    tokens = shape.rows * shape.length // (sizes["data"] * sizes["fsdp"])
    full = config.train.mode == "full"
    # The gradients of a population are not added to the sums where they lie.
    gradients = members * trained_bytes if members > 1 else 0
    return Memory(
        trained=members * trained_bytes * full,
        adapters=members * trained_bytes * (not full),
        frozen=bytes_of_device(frozen),
        reference=trained_bytes if config.loss.exact_kl else 0,
        optimizer=members * bytes_of_device(on(moments, tree_shardings(moments, model, mesh))),
        sums=members * trained_bytes,
        gathered=_gathered(config, model, members) + gradients,
        activations=members * tokens * activations_of_token(config, model),
    )


def planned_dtype(config: Config) -> Any:
    """Of the computation: every device that can be planned for is an accelerator."""
    return compute_dtype(config.model.dtype, on_cpu=False)


def activations_of_token(config: Config, model: DecoderConfig) -> int:
    """Bytes kept of a token over all layers, and of the one layer that backward is at.

    Counted: a layer's input; with `dots` also queries, keys, values, attention's output, the sum
    behind it, gate and up. With `none` everything, the causal rows of attention included, about
    four and a quarter times that: so XLA's accounts say, of all modes on 1 and 8 GPUs. The layer at
    work holds about twenty arrays of the width, norms, causal rows and cotangents among them, and
    four of the feed-forward.
    """
    shared, kinds = config.mesh.tensor, list(kinds_of_layers(model))

    def kept(layer: Layer) -> int:
        products = model.width + _products_of_token(layer) // shared
        return {"full": 0, "dots": products, "none": 17 * products // 4}[config.model.remat]

    values = sum(count * (model.width + kept(layer)) for count, layer in kinds)
    at_work = 20 * model.width + max(4 * _feed_forward(layer) // shared for _, layer in kinds)
    return planned_dtype(config).itemsize * (values + at_work)


def _products_of_token(layer: Layer) -> int:
    """Numbers that a layer computes of a token between its norms and its sums, before the mixing
    of gate and up: the outputs of its linear layers but those into the stream, and attention's."""
    linear = [tensor for tensor in layer.tensors if tensor.kind == "linear"]
    outputs = sum(layer.sizes[t.axes[0]] for t in linear if t.axes[0] != "width")
    return outputs + layer.attention.heads * layer.attention.value_size


def _feed_forward(layer: Layer) -> int:
    return layer.sizes.get("feed_forward", 0)


def _gathered(config: Config, model: DecoderConfig, members: int) -> int:
    """The head, a chunk of logits, and layers in use.

    Layers that are gathered are gone when the head comes. The reference of the exact KL has a head
    and logits of its own.
    """
    mode, mesh, itemsize = config.train.mode, config.mesh, planned_dtype(config).itemsize
    largest = max(layer_matmul_parameters(layer) for _, layer in kinds_of_layers(model))
    layer = itemsize * largest // mesh.tensor
    head = model.vocabulary * model.width // mesh.tensor
    chunk = 4 * CHUNK * model.vocabulary // mesh.tensor
    size = head * (4 + 4 + itemsize if mode == "full" else itemsize) + 3 * chunk * members
    if config.loss.exact_kl:
        size += head * (4 + itemsize if mode == "full" else itemsize) + 3 * chunk * members
    if mesh.fsdp == 1 and mode == "lora":
        return size  # used where they lie
    return size + layer if mesh.fsdp == 1 else max(size, 2 * layer)


def longest_row(
    config: Config, model: DecoderConfig, shape: Shape, room: int, members: int = 1
) -> int:
    """The longest row, in steps of 1,024 tokens, that fits the room by arithmetic; 0 if none."""
    fixed = arithmetic(config, model, dataclasses.replace(shape, length=0), members).peak
    longer = dataclasses.replace(shape, length=ROW_STEP)
    step = arithmetic(config, model, longer, members).peak - fixed
    return max(0, (room - fixed) // step) * ROW_STEP
