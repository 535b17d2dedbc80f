"""Will it fit, and how long will it take: a run on devices that nobody has rented yet.

Memory is told twice, side by side: by arithmetic, and by the compiler, see `ahead_of_time`. The
lengths are those of the data if it can be had, else those stated below.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from tddpo_jax import ahead_of_time
from tddpo_jax.ahead_of_time import (
    DEVICES_OF_A_HOST,
    Report,
    abstract_weights,
    bytes_of_device,
    on,
    placed,
)
from tddpo_jax.cache import cache_folder
from tddpo_jax.config import Config, MeshConfig
from tddpo_jax.convert import read_config
from tddpo_jax.data import load_dataset, load_tokenizer
from tddpo_jax.devices import DEVICES, Device
from tddpo_jax.flops import PEAK_RATES, layer_matmul_parameters, useful_flops
from tddpo_jax.layout import Pair, Shape
from tddpo_jax.logprobs import CHUNK
from tddpo_jax.model import LlamaConfig
from tddpo_jax.model_files import resolve
from tddpo_jax.optimizer import make_optimizer
from tddpo_jax.order import Order, make_order
from tddpo_jax.packing import pack, padding_share
from tddpo_jax.preparation import load_tokenizer_if_any, micro_batch_shapes
from tddpo_jax.sharding import check_mesh, tree_shardings

# Shapes that ship with the project, for their hub ids need no network then.
SHAPES = Path(__file__).parent / "shapes"
KNOWN_SHAPES = {
    f"meta-llama/Llama-2-7b-{kind}": SHAPES / "llama-2-7b" for kind in ("hf", "chat-hf")
}
# argilla/dpo-mix-7k in Llama-2 tokens: means of prompt, chosen and rejected, from a sample of the
# same families; gamma distributions of these shapes have its spread.
STATED_PAIRS, STATED_MEANS, STATED_SHAPES = 6750, (431, 313, 339), (0.8, 2.0, 2.0)

# Left to the CUDA context, NCCL, cuDNN's workspaces and fragmentation.
SPARE_SHARE = 0.09
# Of the data sheet's matmul rate: the best published JAX training of Llama-2-7B on H100s reaches
# 0.49 (487 TFLOP/s a GPU, JAX-Toolbox MaxText).
EXPECTED_SHARE = 0.45
# Bytes per second of each device to those of other hosts: a card of 400 Gb/s for each.
NETWORK = 50e9
COMPUTE_BYTES = 2  # bfloat16
ROW_STEP = 1024
XLA_CPUS, XLA_CUDA = "XLA, CPUs", "XLA, CUDA"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, by arithmetic."""

    trained: int
    frozen: int
    optimizer: int
    sums: int
    gathered: int  # layers brought together for their use and copies for that, the head, logits
    activations: int

    @property
    def resident(self) -> int:
        return self.trained + self.frozen + self.optimizer + self.sums

    @property
    def peak(self) -> int:
        return self.resident + self.gathered + self.activations


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a run."""

    floor: float  # useful operations at the data sheet's rate
    expected: float  # with recomputation and padding, at `EXPECTED_SHARE` of that
    moving: float  # weights and gradients between devices, were nothing hidden


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the verb `plan` says, in `plan_text`'s words."""

    config: Config
    device: str
    model: LlamaConfig
    parameters: int
    trained: int
    lengths: str  # where they come from
    pairs: list[Pair]
    order: Order
    shapes: tuple[Shape, ...]
    micro_batches: float  # of a step
    padding: float
    flops: float  # useful, of a pair
    memory: Memory
    time: Time
    longest_row: int  # in tokens, the longest that fits by arithmetic
    compiled: dict[str, Report]

    @property
    def peak(self) -> int:
        """The compiler's word for the device itself if it could be asked, else arithmetic's."""
        if XLA_CUDA in self.compiled:
            return self.compiled[XLA_CUDA].peak
        return self.memory.peak

    @property
    def fits(self) -> bool:
        return self.peak <= usable(DEVICES[self.device])


def usable(device: Device) -> int:
    """Bytes that a run may take of a device."""
    return int(device.memory * (1 - SPARE_SHARE))


def make_plan(config: Config, device: str) -> Plan:
    """Plans one cell of an experiment on devices of this name, as many as its mesh has.

    Raises:
        ValueError: the user's input is wrong; the message names the field or file.
    """
    folder = model_folder(config.model.path)
    model = read_config(folder)
    pairs, lengths = pairs_or_stated(config, model)
    sizes = {axis: max(1, getattr(config.mesh, axis)) for axis in MeshConfig.model_fields}
    config = config.model_copy(update={"mesh": MeshConfig(**sizes)})
    check_mesh(abstract_mesh(config), model)
    shapes = micro_batch_shapes(config, sizes["data"] * sizes["fsdp"], pairs, "cudnn")
    compilers = _start_compilers(config, folder, device, shapes[0])
    order = make_order(config, len(pairs))
    parameters, trained = parameter_counts(config, model)
    memory = arithmetic(config, model, shapes[0])
    steps = [pack(order.pairs_of(pairs, step), shapes) for step in range(min(4, order.total_steps))]
    micro_batches = float(np.mean([len(batches) for batches in steps]))
    padding = padding_share([batch for batches in steps for batch in batches])
    flops = mean_flops(config, model, pairs)
    return Plan(
        config=config,
        device=device,
        model=model,
        parameters=parameters,
        trained=trained,
        lengths=lengths,
        pairs=pairs,
        order=order,
        shapes=shapes,
        micro_batches=micro_batches,
        padding=padding,
        flops=flops,
        memory=memory,
        time=expected_time(config, model, DEVICES[device], order, flops, micro_batches, padding),
        longest_row=longest_row(config, model, shapes[0], DEVICES[device]),
        compiled={name: ahead_of_time.result(process) for name, process in compilers.items()},
    )


# ---- what is planned for -------------------------------------------------------------------------


def model_folder(path: str) -> Path:
    """A folder with the model's `config.json`: shipped, local, or that one file from the hub.

    Raises:
        ValueError: there is none.
    """
    if path in KNOWN_SHAPES:
        return KNOWN_SHAPES[path]
    if _is_local(path):
        return resolve(path).base
    folder = Path(tempfile.mkdtemp(prefix="tddpo-plan-"))
    try:
        huggingface_hub.hf_hub_download(path, "config.json", local_dir=folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"model.path: {path}: no config.json to plan for: {reason}") from None
    return folder


def _is_local(path: str) -> bool:
    return path == "embedded" or Path(path).expanduser().exists()


def pairs_or_stated(config: Config, model: LlamaConfig) -> tuple[list[Pair], str]:
    """The run's training pairs, or pairs of the stated lengths, and a line that says which.

    Raises:
        ValueError: data and model are here, and there is something wrong with them.
    """
    path = config.model.path
    here = _is_local(path)
    try:
        tokenizer = load_tokenizer_if_any(resolve(path)) if here else load_tokenizer(path)
        dataset = load_dataset(config.data, tokenizer, context=model.context, cache=cache_folder())
    except ValueError as error:
        if here and _is_local(config.data.path):
            raise
        missing = str(error).partition(":")[0]
        return stated_pairs(config, model), f"stated lengths of dpo-mix-7k: no {missing}"
    return dataset.train, f"{config.data.path}, template {dataset.template}"


def stated_pairs(config: Config, model: LlamaConfig) -> list[Pair]:
    """As many pairs as argilla/dpo-mix-7k has, with its lengths; every token is 0."""
    limit = (config.data.max_length or min(2048, model.context)) // 2
    rng = np.random.default_rng(0)
    lengths = []
    for mean, shape in zip(STATED_MEANS, STATED_SHAPES, strict=True):
        drawn = rng.gamma(shape, mean / shape, STATED_PAIRS)
        # Cut as truncation cuts, and back to the stated mean.
        drawn *= mean / np.minimum(drawn, limit).mean()
        lengths.append(np.clip(drawn.astype(int), 2, limit))
    tokens = np.zeros(limit, np.int32)
    return [
        Pair(row, *(tokens[:length] for length in three))
        for row, three in enumerate(zip(*lengths, strict=True))
    ]


def parameter_counts(config: Config, model: LlamaConfig) -> tuple[int, int]:
    """Weights of the model without adapters, and of what is trained."""
    trained = abstract_weights(config, model, jnp.bfloat16)[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    if config.train.mode == "full":
        return count, count
    whole = config.model_copy(update={"train": config.train.model_copy(update={"mode": "full"})})
    return parameter_counts(whole, model)[0], count


def _start_compilers(config: Config, folder: Path, device: str, shape: Shape) -> dict[str, Any]:
    """Both at once: there is a core for each."""
    job = {
        "config": config.model_dump(mode="json"),
        "model": str(folder),
        "devices": math.prod(config.mesh.model_dump().values()),
        "shape": dataclasses.asdict(shape),
    }
    compilers = {XLA_CPUS: ahead_of_time.start({**job, "device": None})}
    if ahead_of_time.cuda_installed():
        compilers[XLA_CUDA] = ahead_of_time.start({**job, "device": device})
    return compilers


# ---- arithmetic ----------------------------------------------------------------------------------


def abstract_mesh(config: Config) -> AbstractMesh:
    """The mesh without devices."""
    sizes = config.mesh.model_dump()
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def arithmetic(config: Config, model: LlamaConfig, shape: Shape) -> Memory:
    """Bytes of one device while it works on a micro-batch of this shape."""
    sizes, mesh = config.mesh.model_dump(), abstract_mesh(config)
    _, *weights = abstract_weights(config, model, jnp.bfloat16)
    trained, frozen = (placed(part, mesh) for part in weights)
    moments = jax.eval_shape(make_optimizer(config.train).init, trained)
    trained_bytes = bytes_of_device(trained)
    tokens = shape.rows * shape.length // (sizes["data"] * sizes["fsdp"])
    return Memory(
        trained=trained_bytes,
        frozen=bytes_of_device(frozen),
        optimizer=bytes_of_device(on(moments, tree_shardings(moments, mesh))),
        sums=trained_bytes,
        gathered=_gathered(config, model),
        activations=tokens * activations_of_token(config, model),
    )


def activations_of_token(config: Config, model: LlamaConfig) -> int:
    """Bytes kept of a token over all layers, and of the one layer that backward is at.

    Counted: a layer's input; with `dots` also queries, keys, values, attention's output, the sum
    behind it, gate and up. With `none` everything, about three and a half times that, the causal
    rows of attention included. The layer at work holds about twenty arrays of the width, norms,
    causal rows and cotangents among them, and four of the feed-forward.
    """
    heads = (2 * model.heads + 2 * model.key_value_heads) * model.head_size
    shared = config.mesh.tensor
    products = model.width + (heads + 2 * model.feed_forward) // shared
    kept = {"full": 0, "dots": products, "none": 7 * products // 2}
    values = model.layers * (model.width + kept[config.model.remat])
    at_work = 20 * model.width + 4 * model.feed_forward // shared
    return COMPUTE_BYTES * (values + at_work)


def _gathered(config: Config, model: LlamaConfig) -> int:
    """Two layers in use or on their way, a layer's gradients, the head, a chunk of logits.

    And a copy of the weights whose inputs are shared, in the order in which they are gathered.
    """
    mode, mesh = config.train.mode, config.mesh
    bytes_stored = {"full": 4, "lora": COMPUTE_BYTES, "qlora": 0}[mode]
    layer = COMPUTE_BYTES * layer_matmul_parameters(model) // mesh.tensor
    head = model.vocabulary * model.width // mesh.tensor
    size = head * (4 + 4 + COMPUTE_BYTES if mode == "full" else COMPUTE_BYTES)
    size += 3 * 4 * CHUNK * model.vocabulary // mesh.tensor
    if mesh.fsdp == 1:
        return size + layer * (mode != "lora")
    heads = (model.heads + 2 * model.key_value_heads) * model.head_size
    copied = model.layers * model.width * (heads + 2 * model.feed_forward)
    size += bytes_stored * copied // (mesh.fsdp * mesh.tensor)
    return size + layer * (3 if mode == "full" else 2)


def longest_row(config: Config, model: LlamaConfig, shape: Shape, device: Device) -> int:
    """The longest row, in steps of 1,024 tokens, that fits by arithmetic; 0 if none does."""
    fixed = arithmetic(config, model, dataclasses.replace(shape, length=0)).peak
    step = arithmetic(config, model, dataclasses.replace(shape, length=ROW_STEP)).peak - fixed
    return max(0, (usable(device) - fixed) // step) * ROW_STEP


def mean_flops(config: Config, model: LlamaConfig, pairs: list[Pair]) -> float:
    """Useful operations of a pair in training."""
    frozen = config.train.mode != "full"
    return float(np.mean([useful_flops(model, pair, frozen_base=frozen) for pair in pairs]))


def expected_time(
    config: Config,
    model: LlamaConfig,
    device: Device,
    order: Order,
    flops: float,
    micro_batches: float,
    padding: float,
) -> Time:
    """Seconds of the reference pass and the training steps, without loading and validation."""
    sizes, full = config.mesh.model_dump(), config.train.mode == "full"
    rate = PEAK_RATES[device.kind] * math.prod(sizes.values())
    passes = 3 if full else 2
    trained_on = order.total_steps * order.batch_pairs
    recomputed = 1 / passes if config.model.remat == "full" else 0.0
    reference = flops / passes * order.pairs
    training = flops * trained_on * (1 + recomputed) / (1 - padding)
    # A layer is brought together forward and backward, and its gradients are shared out.
    weights = COMPUTE_BYTES * model.layers * layer_matmul_parameters(model) / sizes["tensor"]
    trips = (3 if full else 2) if sizes["fsdp"] > 1 else 0
    moved = trips * weights * (sizes["fsdp"] - 1) / sizes["fsdp"]
    one_host = math.prod(sizes.values()) <= DEVICES_OF_A_HOST
    link = device.link if one_host else min(device.link, NETWORK)
    return Time(
        floor=(flops * trained_on + reference) / rate,
        expected=(training + reference) / (rate * EXPECTED_SHARE),
        moving=moved * micro_batches * order.total_steps / link,
    )
