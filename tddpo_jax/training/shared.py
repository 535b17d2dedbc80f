"""Loads what all cells of an experiment share: files, mesh, data, shapes of micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from tddpo_jax.adapters import lora
from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import choose_shapes, widths_of
from tddpo_jax.config.cells import ignored_in
from tddpo_jax.config.schema import Config
from tddpo_jax.data.chat_format import ChatFormat, chat_format
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.examples import VERBATIM, Dataset, Vocabulary
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.losses import trial
from tddpo_jax.losses.catalogue import LOSSES, shared_losses
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.models.attention.kernels import KERNELS, check_choice, check_shape
from tddpo_jax.models.flops import matmul_rate
from tddpo_jax.placement.computation import Computation, computation
from tddpo_jax.placement.mesh import make_mesh, row_devices
from tddpo_jax.runs.records import check_best_metric
from tddpo_jax.system.agreement import agree, check_alike, first_before_others
from tddpo_jax.system.cache import cache_folder, use_compilation_cache
from tddpo_jax.system.console import Screen
from tddpo_jax.training.separate_reference import SeparateReference, check_context, find_reference
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import ModelFiles, adapter_hash, resolve
from tddpo_jax.weights.tensor_files import content_hash, fingerprint


@dataclasses.dataclass(frozen=True)
class ModelHashes:
    """Hashes of the weights that a run begins with; a resumed run must find the same."""

    content: str  # hash of all files of the base
    fingerprint: str  # hash of the first rows of the base's tensors
    adapter: str | None  # hash of the adapter on the base, if there is one


@dataclasses.dataclass(frozen=True)
class Shared:
    """Everything that does not depend on a cell's loss, beta, tau, learning rate or seed."""

    config: Config  # settings of the first cell; only those that all cells share are read
    files: ModelFiles
    hashes: ModelHashes
    reference: SeparateReference | None  # None if the reference is the policy's start
    model_config: DecoderConfig
    mesh: Mesh
    how: Computation
    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase | None  # None if the model's folder has none
    chat: ChatFormat | None  # how the data's conversations are written; None if it has none
    shapes: tuple[Shape, ...]
    matmul_rate: float  # operations per second of one device


def load_shared(configs: Sequence[Config], screen: Screen) -> Shared:
    """Locates the model, reads the data, and chooses how both are laid over the devices.

    Args:
        configs: the cells; they differ in `config.cells.grid_axes` alone.
        screen: shows progress and warnings.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    config = configs[0]
    # Data of pairs has every metric. So this refuses a misspelt name before the data is read.
    check_best_metric(config.train.best_metric, responses=2)
    check_own_losses(configs)
    for line in ignored_in(configs):
        screen.say(f"warning: {line}")
    use_compilation_cache()
    mesh = make_mesh(config.mesh)
    files = first_before_others(lambda: resolve(config.model.path))
    model_config = hugging_face.read_config(files.base)
    how = computation(config.model, mesh, model_config)
    for _, layer in kinds_of_layers(model_config):
        check_shape(how.attention, layer.attention, mesh.devices.flat[0].device_kind)
    if config.train.mode != "full":
        lora.target_paths(config.lora, model_config)  # raises for layers that the model lacks
    base_fingerprint, its_adapter = fingerprint(files.base), adapter_hash(files)
    reference = find_reference(configs, model_config, how, mesh)
    check_alike(
        "model.path",
        "its model differs from the first host's",
        lambda: (model_config, base_fingerprint, its_adapter),
    )
    tokenizer = load_tokenizer_if_any(files.tokenizer)
    dataset = _load_dataset(config, tokenizer, model_config, screen)
    check_best_metric(config.train.best_metric, dataset.responses)
    for cell in configs:
        check_loss(cell, dataset)
    if reference is not None:
        check_context(reference, dataset)
    shapes = micro_batch_shapes(config, row_devices(mesh), dataset, how.attention)
    check_keys(how.attention, model_config, shapes)
    if reference is not None:
        check_keys(how.attention, reference.model, shapes)
    return Shared(
        config=config,
        files=files,
        hashes=ModelHashes(
            content=agree(lambda: content_hash(files.base)),
            fingerprint=base_fingerprint,
            adapter=its_adapter,
        ),
        reference=reference,
        model_config=model_config,
        mesh=mesh,
        how=how,
        dataset=dataset,
        tokenizer=tokenizer,
        chat=chat_of(config, tokenizer, dataset.template),
        shapes=shapes,
        matmul_rate=matmul_rate(how.dtype),
    )


def _load_dataset(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    model_config: DecoderConfig,
    screen: Screen,
) -> Dataset:
    with screen.stage("tokenising") as update:
        # Every host reads all examples. It needs all lengths to pack as the other hosts do, and
        # token ids take little memory.
        dataset = first_before_others(
            lambda: load_dataset(
                config.data,
                tokenizer,
                context=model_config.context,
                cache=cache_folder(),
                vocabulary=Vocabulary(model_config.vocabulary, model_config.not_text),
                progress=update,
            )
        )
    check_alike("data.path", "its data differ from the first host's", lambda: dataset.content_hash)
    return dataset


def chat_of(
    config: Config, tokenizer: PreTrainedTokenizerBase | None, template: str
) -> ChatFormat | None:
    """How the data's conversations are written; None if it has none.

    Args:
        config: the settings of the run.
        tokenizer: the model's tokenizer, if it has one.
        template: the name of the template under which the data was read.
    """
    if tokenizer is None or template == VERBATIM:
        return None
    return chat_format(tokenizer, config.data.template)


def check_own_losses(configs: Sequence[Config]) -> None:
    """Tries every loss that comes from a user's file.

    Raises:
        UserError: a loss is not pure, not finite at the start, or has no gradient, or another host
            has another text of it.
    """
    tried: set[str] = set()
    for config in configs:
        if LOSSES[config.loss.name].source:
            _try(config, whole=config.loss.name not in tried)
            tried.add(config.loss.name)


def _try(config: Config, *, whole: bool) -> None:
    """Tries the loss of a cell; `whole` is False if another cell has already tried the function."""
    loss, settings = LOSSES[config.loss.name], config.loss.settings
    if whole:
        check_alike("loss.name", "its file differs from the first host's", lambda: loss.source)
        trial.check(loss, settings)
    else:
        trial.check_start(loss, settings)


def check_loss(config: Config, dataset: Dataset) -> None:
    """Raises UserError if the loss reads more responses than the examples of the data have."""
    if LOSSES[config.loss.name].responses > dataset.responses:
        fitting = [
            name for name, loss in shared_losses().items() if loss.responses <= dataset.responses
        ]
        raise UserError(
            f"loss.name: {config.loss.title} compares two responses, but {config.data.names} has "
            f"one per prompt; choose one of {', '.join(fitting)}"
        )


def check_keys(attention: str, model: DecoderConfig, shapes: Sequence[Shape]) -> None:
    """Refuses a back-end that cannot choose among as many keys as a branch may have.

    Args:
        attention: the name of the attention back-end.
        model: the model's shape.
        shapes: the shapes of micro-batches.

    Raises:
        UserError: as for `check_choice`.
    """
    longest = next(iter(widths_of(shapes)), 0)
    for _, layer in kinds_of_layers(model):
        check_choice(attention, layer.attention.most_keys, longest)


def micro_batch_shapes(
    config: Config, devices: int, dataset: Dataset, attention: str
) -> tuple[Shape, ...]:
    """The shapes of a run's micro-batches, for training and validation.

    Args:
        config: the settings of the run.
        devices: the number of devices that share the rows of a micro-batch.
        dataset: the examples, whose lengths decide.
        attention: the name of the attention back-end.

    Raises:
        UserError: the devices cannot share the rows evenly, or a row cannot hold every example.
    """
    rows = config.data.rows or devices
    if rows % devices:
        raise UserError(
            f"data.rows: must be a multiple of {devices} (data x fsdp devices), got {rows}"
        )
    return choose_shapes(
        [*dataset.train, *dataset.validation],
        config.train.batch_pairs,
        rows=rows,
        row_length=config.data.row_length,
        plain=config.data.layout == "plain",
        causal_rows=attention in KERNELS,
    )
