"""What is measured: a model of random weights, and real pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.batches.packing import choose_shapes
from tddpo_jax.config.schema import Config, DataConfig, LoraConfig, MeshConfig, ModelConfig
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.flops import measured_matmul_rate
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.placement.computation import attention_implementation
from tddpo_jax.placement.mesh import make_mesh, row_devices
from tddpo_jax.planning.lengths import stated_pairs
from tddpo_jax.system.cache import cache_folder

STATED = "stated"  # a data set of random tokens with the lengths of dpo-mix-7k
# See `Case.matmul_size`.
MATMUL_SIZE = {"cpu": 2048}
ACCELERATOR_MATMUL_SIZE = 8192
WARM_UP = 2  # steps that do not count


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured."""

    model: LlamaConfig
    data: str
    tokenizer: Path
    max_length: int
    batch_pairs: int
    mode: str
    remat: str
    layout: str
    dtype: str
    attention: str
    steps: int
    mesh: MeshConfig
    row_length: int | None = None
    # The side of the square product that measures the device; by default large enough to fill it.
    matmul_size: int | None = None

    @property
    def settings(self) -> ModelConfig:
        """How the model is computed, as the settings of a run."""
        return ModelConfig.model_validate(
            {"dtype": self.dtype, "remat": self.remat, "attention": self.attention}
        )


def load_pairs(case: Case) -> list[Example]:
    """All pairs of the data, cut to the case's length."""
    data = DataConfig(path=case.data, max_length=case.max_length, validation=0)
    if case.data == STATED:
        rng = np.random.default_rng(0)
        pairs = stated_pairs(Config(data=data), case.model)

        def random(ids: np.ndarray) -> np.ndarray:
            return rng.integers(3, case.model.vocabulary, len(ids), np.int32)

        return [
            Example(pair.row, random(pair.prompt), tuple(map(random, pair.responses)))
            for pair in pairs
        ]
    tokenizer = load_tokenizer(case.tokenizer)
    dataset = load_dataset(
        data,
        tokenizer,
        context=case.max_length,
        cache=cache_folder(),
        vocabulary=Vocabulary(case.model.vocabulary, case.model.not_text),
    )
    return dataset.train


def timed_pairs(case: Case, pairs: list[Example]) -> list[Example]:
    """The pairs of all steps, warm-up first. Their random order is always the same."""
    order = np.random.default_rng(0).permutation(len(pairs))
    needed = (case.steps + WARM_UP) * case.batch_pairs
    return [pairs[number] for number in np.resize(order, needed)]


def shapes_of(case: Case, pairs: list[Example]) -> tuple[Shape, ...]:
    """The shapes of micro-batches that training on all these pairs would choose."""
    return choose_shapes(
        pairs,
        case.batch_pairs,
        rows=row_devices(make_mesh(case.mesh)),
        row_length=case.row_length,
        plain=case.layout == "plain",
        causal_rows=attention_implementation(case.settings, model=case.model) in KERNELS,
    )


def random_model(case: Case, mesh: Any, dtype: str) -> Decoder:
    """Random weights of the case's shape in a dtype, with adapters and NF4 if the mode has them."""

    @jax.jit
    def make(key: jax.Array) -> Decoder:
        return jax.tree.map(lambda weight: weight.astype(dtype), Decoder(case.model, key))

    model = make(jax.random.key(0))
    if case.mode == "qlora":
        quantize(model)
    if case.mode != "full":
        lora.add_adapters(model, LoraConfig(), 0, mesh)
    return model


def trained_model(case: Case, mesh: Any) -> Decoder:
    """The same in the dtype in which training stores weights: master weights are float32."""
    return random_model(case, mesh, "float32" if case.mode == "full" else case.dtype)


def matmul_rate(case: Case) -> float:
    """Operations per second of a large product on one device, measured now."""
    usual = MATMUL_SIZE.get(jax.default_backend(), ACCELERATOR_MATMUL_SIZE)
    return measured_matmul_rate(jnp.dtype(case.dtype), case.matmul_size or usual)
