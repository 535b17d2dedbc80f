"""Times our training step on random weights of a given shape and real pairs.

Useful operations give no credit for padding, repeated prompts or rematerialisation. The rate of
large products is measured on the same device in the same run, between the steps.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from tddpo_jax.batches.layout import Batch, Example, Shape, stream_length
from tddpo_jax.batches.packing import pack, padding_share
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.flops import useful_flops
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.placement.computation import computation
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.placement.shardings import bytes_of_device
from tddpo_jax.planning.compiler import beside_arguments
from tddpo_jax.scoring.data_sets import log_probs, place_batch
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.policy import split_model
from tddpo_jax.training.state import Frozen, Knobs, Sums, Totals, stacked
from tddpo_jax.training.step import StepSetting, make_program

from .case import (
    WARM_UP,
    Case,
    load_pairs,
    matmul_rate,
    random_model,
    shapes_of,
    timed_pairs,
    trained_model,
)

# The settings of the loss, by the number of responses of an example.
LOSSES_OF = {
    2: resolve({"loss": {"name": "dpo", "beta": 0.1}}).loss.settings,
    1: resolve({"loss": {"name": "sft"}}).loss.settings,
}


class Trainer:
    """Our compiled step over given pairs, timed one step at a time.

    Args:
        case: what is measured; a step has `case.batch_pairs` pairs.
        pairs: the pairs of all steps, in order; or examples of one response, which `sft` trains.
        shapes: the shapes of the micro-batches.
        members: policies that a step trains at once.
    """

    def __init__(
        self, case: Case, pairs: list[Example], shapes: tuple[Shape, ...], members: int = 1
    ) -> None:
        self.case, self.pairs, self.shapes, self.members = case, pairs, shapes, members
        self.mesh = make_mesh(case.mesh)
        kind = nnx.Param if case.mode == "full" else LoraParam
        graphdef, trainable, base = split_model(trained_model(case, self.mesh), kind)
        self.loss = LOSSES_OF[shapes[0].responses]
        how = computation(case.settings, self.mesh, case.model)
        optimizer = make_optimizer(TrainConfig(), case.model)
        objective, responses = objective_of([self.loss]), shapes[0].responses
        setting = StepSetting(graphdef, case.model, objective, optimizer, how, responses)
        self.program = make_program(setting, trainable, members)
        self.frozen = Frozen(base, None)
        # A usual beta and rate, the same for all members.
        self.knobs = jax.tree.map(
            lambda x: np.full(members, x, np.int32 if isinstance(x, int) else np.float32),
            Knobs(0, objective.scalars(self.loss), 1e-5, TrainConfig().weight_decay),
        )
        self.state = self.program.start(stacked([trainable] * members))
        self.reference = np.zeros((len(pairs), shapes[0].responses), np.float32)
        self.compiled: dict[tuple[str, tuple[int, ...]], jax.stages.Compiled] = {}
        # The most bytes that one device holds while it computes gradients or updates.
        self.peak_bytes = 0
        self.reference_seconds: list[float] = []
        self.seconds: list[float] = []
        self.matmul: list[float] = []
        self.counts: list[dict[str, float]] = []
        self.first_metrics: dict[str, float] = {}
        self.last_metrics: dict[str, float] = {}

    def score_reference(self) -> None:
        """Computes the reference's log-probs of all pairs, as a run does before its first step."""
        batch, parts = self.case.batch_pairs, []
        for first in range(0, len(self.pairs), batch):
            start = time.perf_counter()
            logps, _ = log_probs(
                functools.partial(self.program.log_probs_of_one, self.state.trainable, self.frozen),
                self.pairs[first : first + batch],
                self.shapes,
                self.mesh,
            )
            self.reference_seconds.append(time.perf_counter() - start)
            parts.append(logps[0])
        self.reference = np.concatenate(parts)

    def step(self, number: int) -> float:
        """Runs step `number` and returns its seconds.

        Packing does not count: in training it runs while the device computes.
        """
        rows = slice(number * self.case.batch_pairs, (number + 1) * self.case.batch_pairs)
        pairs = self.pairs[rows]
        batches = pack(pairs, self.shapes, self.reference[rows])
        placed = jax.block_until_ready([place_batch(batch, self.mesh) for batch in batches])
        totals = Totals(float(len(pairs)), float(sum(len(pair.responses[0]) for pair in pairs)))
        self._warm_up(placed, totals)
        self.matmul.append(matmul_rate(self.case))
        start = time.perf_counter()
        sums = self.program.zeros(self.state)
        for batch in placed:
            sums = self.add_gradients(sums, batch, totals)
        metrics = self.update(sums, totals)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append(time.perf_counter() - start)
        self.counts.append(_counts(self.case, pairs, batches))
        self.last_metrics = {name: float(value[0]) for name, value in metrics.items()}
        self.first_metrics = self.first_metrics or self.last_metrics
        return self.seconds[-1]

    def _warm_up(self, placed: list[Batch], totals: Totals) -> None:
        """Compiles and runs micro-batches of new shapes. Their sums are thrown away."""
        new = {batch.tokens.shape: batch for batch in placed if self._is_new(batch)}
        if new:
            sums = self.program.zeros(self.state)
            for batch in new.values():
                sums = self.add_gradients(sums, batch, totals)
            jax.block_until_ready(sums)

    def _is_new(self, batch: Batch) -> bool:
        return ("add_gradients", batch.tokens.shape) not in self.compiled

    def add_gradients(self, sums: Sums, batch: Batch, totals: Totals) -> Sums:
        """Adds the gradients of one micro-batch to the sums."""
        arguments = sums, self.state, self.frozen, self.knobs, batch, totals, None
        return self._run("add_gradients", batch.tokens.shape, arguments)

    def update(self, sums: Sums, totals: Totals) -> dict[str, jax.Array]:
        """Updates the weights; returns the metrics of the step."""
        arguments = self.state, sums, self.knobs, totals
        self.state, metrics = self._run("update", (), arguments)
        return metrics

    def _run(self, name: str, shape: tuple[int, ...], arguments: tuple) -> Any:
        """Calls a function of the program. It is compiled here, so that its memory is known."""
        if (name, shape) not in self.compiled:
            lowered = getattr(self.program, name).lower(*arguments)
            self.compiled[name, shape] = lowered.compile()
            arrays = [x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)]
            held = bytes_of_device(arrays) + beside_arguments(self.compiled[name, shape])
            self.peak_bytes = max(self.peak_bytes, held)
        return self.compiled[name, shape](*arguments)

    def rates(self) -> dict[str, Any]:
        """Medians over the steps after the warm-up. Each step has its own rate: tokens differ."""
        seconds, counts = self.seconds[WARM_UP:], self.counts[WARM_UP:]

        def median(name: str) -> float:
            return statistics.median(count[name] for count in counts)

        def per_second(name: str) -> float:
            each = zip(counts, seconds, strict=True)
            return statistics.median(count[name] / duration for count, duration in each)

        # On a CPU, the virtual devices share the cores that one product uses already.
        devices = 1 if jax.default_backend() == "cpu" else self.mesh.size
        useful = per_second("useful") * self.members
        rate = statistics.median(self.matmul[WARM_UP:]) * devices
        reference = self.reference_seconds[WARM_UP:]
        return {
            "tokens_per_second": per_second("tokens"),
            "positions_per_second": per_second("positions"),
            "padding_share": median("padding"),
            "shared_over_unshared_tokens": median("tokens") / median("unshared"),
            "useful_tflops": useful / 1e12,
            "matmul_tflops": rate / 1e12,
            "useful_share": useful / rate,
            # A run computes the reference of a step's pairs once. The step's time leaves it out.
            "reference_seconds": statistics.median(reference) if reference else None,
            "peak_bytes": self.peak_bytes,
            "micro_batches": [dataclasses.asdict(shape) for shape in self.shapes],
        }

    def base_model(self) -> Decoder:
        """The random weights from the start, without adapters."""
        return random_model(dataclasses.replace(self.case, mode="full"), self.mesh, self.case.dtype)


def measure_training(case: Case) -> dict[str, Any]:
    """The median step time after the warm-up, with rates and shares."""
    pairs = load_pairs(case)
    trainer = Trainer(case, timed_pairs(case, pairs), shapes_of(case, pairs))
    trainer.score_reference()
    return step_figures(trainer)


def step_figures(trainer: Trainer) -> dict[str, Any]:
    """Runs all steps of a fresh trainer; returns its median step time, with rates and shares."""
    case = trainer.case
    median = statistics.median(
        [trainer.step(number) for number in range(case.steps + WARM_UP)][WARM_UP:]
    )
    return {
        "mode": case.mode,
        "remat": case.remat,
        "step_seconds": median,
        "pairs_per_second": case.batch_pairs / median,
        **trainer.rates(),
    }


def _counts(case: Case, pairs: list[Example], batches: list[Batch]) -> dict[str, int | float]:
    frozen = case.mode != "full"
    branches = [len(pair.prompt) + len(ids) - 1 for pair in pairs for ids in pair.responses]
    return {
        "useful": sum(useful_flops(case.model, pair, frozen_base=frozen) for pair in pairs),
        "tokens": sum(map(stream_length, pairs)),
        "unshared": sum(branches),
        "positions": sum(batch.tokens.size for batch in batches),
        "padding": padding_share(batches),
    }
