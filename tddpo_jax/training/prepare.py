"""Everything the cells of an experiment share, made once: weights, pairs, programs, reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from tddpo_jax import __version__
from tddpo_jax.adapters import lora
from tddpo_jax.adapters.load import load_model, load_unmerged
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.adapters.peft_files import has_quantized_base
from tddpo_jax.batches.layout import Pair, Shape
from tddpo_jax.batches.packing import choose_shapes
from tddpo_jax.config.cells import ignored_in
from tddpo_jax.config.schema import Config
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.pairs import Dataset
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LossSpec
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.models.attention.kernels import KERNELS, check_shape
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.flops import matmul_rate
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.placement.computation import (
    attention_implementation,
    computation,
    compute_dtype,
)
from tddpo_jax.placement.mesh import make_mesh, row_devices
from tddpo_jax.runs.records import check_best_metric
from tddpo_jax.scoring.data_sets import log_probs
from tddpo_jax.scoring.reference import reference_log_probs
from tddpo_jax.system.agreement import agree, check_alike, first_before_others
from tddpo_jax.system.cache import cache_folder, use_compilation_cache
from tddpo_jax.system.console import Screen
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.state import Frozen
from tddpo_jax.training.step import Program, make_program, split_model
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import ModelFiles, resolve
from tddpo_jax.weights.tensor_files import content_hash, files_hash, fingerprint


def loss_spec(config: Config) -> LossSpec:
    """The static part of a cell's loss."""
    return LossSpec(config.loss.name, config.loss.margin, config.loss.kl)


@dataclasses.dataclass
class Prepared:
    """What every cell of an experiment uses; nothing here depends on loss, beta, tau or seed."""

    config: Config  # of the first cell: the settings that all cells share
    files: ModelFiles
    model_config: DecoderConfig
    tokenizer: PreTrainedTokenizerBase | None
    mesh: Mesh
    dataset: Dataset
    shapes: tuple[Shape, ...]
    specs: tuple[LossSpec, ...]  # of all cells
    graphdef: nnx.GraphDef
    frozen: Frozen
    reference: Float[np.ndarray, "train 2"]
    validation_reference: Float[np.ndarray, "validation 2"]
    dtype: Any  # of the computation
    matmul_rate: float  # operations per second of one device
    model_hash: str  # of the base's files
    base_fingerprint: str
    adapter_hash: str | None
    loaded: nnx.State | None  # trainable parameters as loaded, until a run takes them
    trainable: nnx.State  # shapes of one member's parameters
    programs: dict[int, Program]  # by size of population

    def program(self, members: int) -> Program:
        """The compiled functions for populations of this size, made once."""
        if members not in self.programs:
            self.programs[members] = make_program(
                self.graphdef,
                self.model_config,
                self.trainable,
                self.specs,
                make_optimizer(self.config.train, self.model_config),
                self.mesh,
                computation(self.config.model, self.mesh),
                members,
            )
        return self.programs[members]

    def fresh(self, seed: int) -> nnx.State:
        """Trainable parameters as a run with this seed starts with them."""
        if self.config.train.mode != "full":
            model = self.model(self.trainable)
            return lora.fresh_adapters(model, self.config.lora, seed, self.mesh)
        # The first run takes the weights that the reference pass used, and overwrites them.
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            return loaded
        return nnx.split(load_model(self.files, self.mesh, jnp.float32), nnx.Param, ...)[1]

    def model(self, trainable: nnx.State) -> Decoder:
        return nnx.merge(self.graphdef, trainable, self.frozen.base)


def prepare(configs: Sequence[Config], screen: Screen) -> Prepared:
    """Loads the model and the data and makes the reference's log-probs.

    Args:
        configs: the cells; they differ in loss, beta, tau, seed and learning rate alone.
        screen: for progress.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    config = configs[0]
    check_best_metric(config.train.best_metric)
    for line in ignored_in(configs):
        screen.say(f"warning: {line}")
    use_compilation_cache()
    mesh = make_mesh(config.mesh)
    files = first_before_others(lambda: resolve(config.model.path))
    model_config = hugging_face.read_config(files.base)
    attention = attention_implementation(config.model)
    for _, layer in kinds_of_layers(model_config):
        check_shape(attention, layer.attention)
    if config.train.mode != "full":
        lora.target_paths(config.lora, model_config)  # refuses layers that the model lacks
    base_fingerprint, adapter_hash = fingerprint(files.base), _adapter_hash(files)
    check_alike(
        "model.path",
        "another model than the first host's",
        lambda: (model_config, base_fingerprint, adapter_hash),
    )
    tokenizer = load_tokenizer_if_any(files.tokenizer)
    with screen.stage("tokenising") as update:
        # Every host needs the lengths of all pairs, to pack alike; token ids are small beside them.
        dataset = first_before_others(
            lambda: load_dataset(
                config.data,
                tokenizer,
                context=model_config.context,
                cache=cache_folder(),
                vocab_size=model_config.vocabulary,
                progress=update,
            )
        )
    check_alike("data.path", "other data than the first host's", lambda: dataset.content_hash)
    shapes = micro_batch_shapes(config, row_devices(mesh), dataset, attention)
    dtype = compute_dtype(config.model.dtype)
    graphdef, trainable, base = _split_model(config, files, mesh, dtype)
    specs = tuple(dict.fromkeys(loss_spec(cell) for cell in configs))
    full_kl = any(spec.kl == "full" for spec in specs)
    # A copy, for full fine-tuning overwrites the original: the price of the exact KL.
    frozen = Frozen(base, jax.tree.map(jnp.copy, trainable) if full_kl else None)
    prepared = Prepared(
        config=config,
        files=files,
        model_config=model_config,
        tokenizer=tokenizer,
        mesh=mesh,
        dataset=dataset,
        shapes=shapes,
        specs=specs,
        graphdef=graphdef,
        frozen=frozen,
        reference=np.zeros((0, 2)),
        validation_reference=np.zeros((0, 2)),
        dtype=dtype,
        matmul_rate=matmul_rate(dtype),
        model_hash=agree(lambda: content_hash(files.base)),
        base_fingerprint=base_fingerprint,
        adapter_hash=adapter_hash,
        loaded=trainable,
        trainable=jax.eval_shape(lambda: trainable),
        programs={},
    )
    prepared.reference = _reference(prepared, dataset.train, "train", screen)
    prepared.validation_reference = _reference(prepared, dataset.validation, "validation", screen)
    return prepared


def _reference(prepared: Prepared, pairs: list[Pair], part: str, screen: Screen) -> np.ndarray:
    """The reference's log-probs of pairs, `[pairs, 2]`: from the cache, or computed now."""
    run = prepared.program(1).log_probs_of_one
    trainable, frozen, shapes = prepared.loaded, prepared.frozen, prepared.shapes
    assert trainable is not None

    def compute() -> np.ndarray:
        with screen.stage(f"reference, {part}") as update:
            logps, _ = log_probs(
                functools.partial(run, trainable, frozen), pairs, shapes, prepared.mesh, update
            )
        return logps[0]

    adapter = prepared.files.adapter
    quantized = prepared.config.train.mode == "qlora" or has_quantized_base(adapter)
    return reference_log_probs(
        compute,
        cache_folder(),
        model=prepared.model_hash,
        # Merged into the weights or beside them: not the same to the last digit.
        adapter=prepared.adapter_hash and [prepared.adapter_hash, prepared.config.train.mode],
        data=prepared.dataset.content_hash,
        part=part,
        dtype=str(prepared.dtype),
        # Not True: so it was called when the codes depended on the dtype of the computation.
        quantised=quantized and "as stored",
        # These move the last digits, and validation at step 0 should be exactly the reference.
        micro_batches=[dataclasses.asdict(shape) for shape in shapes],
        attention=prepared.config.model.attention,
        version=__version__,
    )


def _adapter_hash(files: ModelFiles) -> str | None:
    if files.adapter is None:
        return None
    return files_hash(sorted(files.adapter.glob("adapter_*")))


def micro_batch_shapes(
    config: Config, devices: int, dataset: Dataset, attention: str
) -> tuple[Shape, ...]:
    """The shapes of the micro-batches of a run over this many row devices, validation included.

    Raises:
        UserError: the devices cannot share the rows evenly, or a row cannot hold every pair.
    """
    rows = config.data.rows or devices
    if rows % devices:
        raise UserError(f"data.rows: {rows} is no multiple of the mesh's {devices} row devices")
    return choose_shapes(
        [*dataset.train, *dataset.validation],
        config.train.batch_pairs,
        rows=rows,
        row_length=config.data.row_length,
        plain=config.data.layout == "plain",
        causal_rows=attention in KERNELS,
    )


def _split_model(
    config: Config, files: ModelFiles, mesh: Mesh, dtype: Any
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model as (structure, trainable parameters, frozen parameters)."""
    if config.train.mode == "full":
        # float32 master weights, whatever the dtype of the computation.
        return split_model(load_model(files, mesh, jnp.float32), nnx.Param)
    quantized = config.train.mode == "qlora"
    stored = checkpoint_dtype(files.base) if quantized else dtype
    model = load_unmerged(files, mesh, stored)
    lora.freeze_adapters(model)
    if quantized:
        quantize(model)
    lora.add_adapters(model, config.lora, config.seed, mesh)
    return split_model(model, LoraParam)
