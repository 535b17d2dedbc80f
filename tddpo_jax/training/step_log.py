"""Reads the metrics of a step from the device, and logs them with the step's speed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array

from tddpo_jax.batches.layout import Example, stream_length
from tddpo_jax.models.flops import useful_flops
from tddpo_jax.system.console import Update
from tddpo_jax.training.optimizer import learning_rate
from tddpo_jax.training.outcome import record_divergence
from tddpo_jax.training.population import Population
from tddpo_jax.training.state import TrainState


class StepLog:
    """The log of a population; metrics are read one step late, so that the device never waits."""

    def __init__(self, population: Population, first_step: int) -> None:
        """
        Args:
            population: the runs.
            first_step: the step at which training starts or resumes.
        """
        self.population = population
        self.tokens = sum(self._tokens(step) for step in range(first_step))
        self.clock = time.perf_counter()

    def start_clock(self) -> None:
        """Starts the clock; time before this call does not count for any step."""
        self.clock = time.perf_counter()

    def _tokens(self, step: int) -> int:
        return sum(map(stream_length, self.population.examples_of(step)))

    def read(
        self, step: int, on_device: dict[str, Array], state: TrainState, update_bar: Update
    ) -> None:
        """Waits for a step, logs it, and ends the members that diverged in it.

        Args:
            step: number of the step.
            on_device: the step's metrics, `[M]` each.
            state: the state of all members.
            update_bar: shows the progress of the training.
        """
        population, order = self.population, self.population.order
        values = jax.device_get(on_device)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        examples = population.examples_of(step)
        self.tokens += self._tokens(step)
        rate = len(examples) / seconds
        what = "pairs" if population.experiment.shared.dataset.responses == 2 else "examples"
        shared = {
            "num_tokens": self.tokens,
            f"{what}_per_second": rate,
            "mfu": self._mfu(examples, seconds),
        }
        for number, run in enumerate(population.members):
            if run.diverged:
                continue
            metrics = {name: float(value[number]) for name, value in values.items()}
            if not metrics.pop("alive"):
                line = record_divergence(population, state, number, step, metrics)
                population.screen.say(line)
                continue
            train_config = run.config.train
            metrics["learning_rate"] = learning_rate(train_config, step, order.total_steps)
            if step % train_config.log_every == 0:
                epoch = order.epoch(step)
                run.log({"step": step, "epoch": epoch, **metrics, **shared})
        living = [number for number, run in enumerate(population.members) if not run.diverged]
        if not living:
            return
        shown = [f"loss {np.mean(values['loss'][living]):.4f}"]
        if "rewards/accuracies" in values:
            shown.append(f"accuracy {np.mean(values['rewards/accuracies'][living]):.3f}")
        text = "  ".join([*shown, f"{rate:.1f} {what}/s"])
        update_bar(step + 1, order.total_steps, text)

    def _mfu(self, examples: Sequence[Example], seconds: float) -> float:
        shared = self.population.experiment.shared
        frozen = shared.config.train.mode != "full"
        useful = sum(
            useful_flops(shared.model_config, each, frozen_base=frozen) for each in examples
        )
        done = useful * len(self.population.members) / seconds
        return done / (shared.matmul_rate * shared.mesh.size)
