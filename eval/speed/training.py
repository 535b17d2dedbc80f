"""The time of our training step on random weights of a given shape and real pairs.

Useful operations give no credit for padding, repeated prompts or rematerialisation; the rate of
large products is measured on the same device in the same run, between the steps.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tddpo_jax import lora
from tddpo_jax.config import DataConfig, LoraConfig, MeshConfig, ModelConfig, TrainConfig
from tddpo_jax.data import load_dataset, load_tokenizer
from tddpo_jax.flops import measured_matmul_rate, useful_flops
from tddpo_jax.layout import Batch, Pair, stream_length
from tddpo_jax.losses import LossScalars, LossSpec
from tddpo_jax.model import Llama, LlamaConfig, LoraParam
from tddpo_jax.optimizer import make_optimizer
from tddpo_jax.packing import choose_shapes, pack, padding_share
from tddpo_jax.preparation import cache_folder, computation
from tddpo_jax.reference import place_batch
from tddpo_jax.sharding import make_mesh, row_devices
from tddpo_jax.train_step import Frozen, Knobs, Totals, make_program, split_model

MATMUL_SIZE = 2048
WARM_UP = 2


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


def load_pairs(case: Case) -> list[Pair]:
    """All pairs of the data, cut to the case's length."""
    data = DataConfig(path=case.data, max_length=case.max_length, validation=0)
    tokenizer = load_tokenizer(case.tokenizer)
    return load_dataset(data, tokenizer, context=case.max_length, cache=cache_folder()).train


def random_model(case: Case, mesh: Any) -> Llama:
    """Random weights of the case's shape on the devices, with adapters and NF4 as its mode asks."""
    dtype = jnp.float32 if case.mode == "full" else jnp.dtype(case.dtype)

    @jax.jit
    def make(key: jax.Array) -> Llama:
        return jax.tree.map(lambda weight: weight.astype(dtype), Llama(case.model, key))

    model = make(jax.random.key(0))
    if case.mode == "qlora":
        lora.quantize(model)
    if case.mode != "full":
        lora.add_adapters(model, LoraConfig(), 0, mesh)
    return model


class Trainer:
    """Our compiled step over given pairs, `case.batch_pairs` a step, timed one step at a time."""

    def __init__(self, case: Case, pairs: list[Pair]) -> None:
        self.case, self.pairs = case, pairs
        self.mesh = make_mesh(case.mesh)
        self.shapes = choose_shapes(
            pairs,
            case.batch_pairs,
            rows=row_devices(self.mesh),
            plain=case.layout == "plain",
        )
        kind = nnx.Param if case.mode == "full" else LoraParam
        graphdef, trainable, base = split_model(random_model(case, self.mesh), kind)
        settings = ModelConfig.model_validate(
            {"dtype": case.dtype, "remat": case.remat, "attention": case.attention}
        )
        self.program = make_program(
            graphdef,
            trainable,
            (LossSpec("dpo"),),
            make_optimizer(TrainConfig()),
            self.mesh,
            computation(settings, self.mesh),
        )
        self.state, self.frozen = self.program.start(trainable), Frozen(base, None)
        self.seconds: list[float] = []
        self.matmul: list[float] = []
        self.counts: list[dict[str, float]] = []

    def step(self, number: int) -> float:
        """Runs step `number` and returns its seconds.

        Packing is left out: in training it runs beside the device.
        """
        first = number * self.case.batch_pairs
        pairs = self.pairs[first : first + self.case.batch_pairs]
        batches = pack(pairs, self.shapes)
        placed = jax.block_until_ready([place_batch(batch, self.mesh) for batch in batches])
        totals = Totals(float(len(pairs)), float(sum(len(pair.chosen) for pair in pairs)))
        self.matmul.append(measured_matmul_rate(jnp.dtype(self.case.dtype), MATMUL_SIZE))
        start = time.perf_counter()
        sums = self.program.zeros(self.state)
        for batch in placed:
            sums = self.program.add_gradients(
                sums, self.state, self.frozen, _knobs(), batch, totals, None
            )
        self.state, metrics = self.program.update(self.state, sums, _knobs(), totals)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append(time.perf_counter() - start)
        self.counts.append(_counts(self.case, pairs, batches))
        self.largest = placed[0]
        return self.seconds[-1]

    def rates(self) -> dict[str, Any]:
        """Medians over the steps after the warm-up, each step by itself: their tokens differ."""
        seconds, counts = self.seconds[WARM_UP:], self.counts[WARM_UP:]

        def median(name: str) -> float:
            return statistics.median(count[name] for count in counts)

        def per_second(name: str) -> float:
            each = zip(counts, seconds, strict=True)
            return statistics.median(count[name] / duration for count, duration in each)

        # On a CPU the virtual devices share the cores that the one product uses too.
        devices = 1 if jax.default_backend() == "cpu" else self.mesh.size
        useful = per_second("useful")
        rate = statistics.median(self.matmul[WARM_UP:]) * devices
        return {
            "tokens_per_second": per_second("tokens"),
            "positions_per_second": per_second("positions"),
            "padding_share": median("padding"),
            "shared_over_unshared_tokens": median("tokens") / median("unshared"),
            "useful_tflops": useful / 1e12,
            "matmul_tflops": rate / 1e12,
            "useful_share": useful / rate,
            "peak_bytes": self._peak_bytes(),
            "micro_batches": [dataclasses.asdict(shape) for shape in self.shapes],
        }

    def _peak_bytes(self) -> int:
        """Of the compiled gradient program on one device: all it holds while it runs."""
        lowered = self.program.add_gradients.lower(  # type: ignore[attr-defined]
            self.program.zeros(self.state),
            self.state,
            self.frozen,
            _knobs(),
            self.largest,
            Totals(1.0, 1.0),
            None,
        )
        memory = lowered.compile().memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes

    def base_model(self) -> Llama:
        """The random weights as they started, without adapters."""
        return random_model(dataclasses.replace(self.case, mode="full"), self.mesh)


def measure_training(case: Case) -> dict[str, Any]:
    """Median step time after the warm-up, and what it comes to."""
    pairs = load_pairs(case)
    order = np.random.default_rng(0).permutation(len(pairs))
    needed = (case.steps + WARM_UP) * case.batch_pairs
    trainer = Trainer(case, [pairs[number] for number in np.resize(order, needed)])
    seconds = [trainer.step(number) for number in range(case.steps + WARM_UP)][WARM_UP:]
    median = statistics.median(seconds)
    return {
        "mode": case.mode,
        "step_seconds": median,
        "pairs_per_second": case.batch_pairs / median,
        **trainer.rates(),
    }


def _knobs() -> Knobs:
    knobs = Knobs(0, LossScalars(0.1, 1.0, 0.0, 0.05, 0.5), 1e-5)
    return jax.tree.map(
        lambda x: np.array([x], np.int32 if isinstance(x, int) else np.float32), knobs
    )


def _counts(case: Case, pairs: list[Pair], batches: list[Batch]) -> dict[str, float]:
    frozen = case.mode != "full"
    return {
        "useful": sum(useful_flops(case.model, pair, frozen_base=frozen) for pair in pairs),
        "tokens": sum(map(stream_length, pairs)),
        "unshared": sum(stream_length(pair) + len(pair.prompt) for pair in pairs),
        "positions": sum(batch.tokens.size for batch in batches),
        "padding": padding_share(batches),
    }
