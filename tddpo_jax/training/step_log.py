"""Reads the metrics of a step from the device, and logs them with the step's speed."""

from __future__ import annotations

import collections
import time
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tddpo_jax.batches.layout import Batch, stream_length
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.models.flops import useful_flops
from tddpo_jax.system.console import Update
from tddpo_jax.training.optimizer import learning_rate
from tddpo_jax.training.outcome import record_divergence
from tddpo_jax.training.population import Population
from tddpo_jax.training.result_warnings import saturation
from tddpo_jax.training.state import TrainState

# Speeds are those of the last steps together, because single steps differ in micro-batches.
WINDOW_STEPS = 10


class _Timed(NamedTuple):
    """A step, or several steps together, for their speed."""

    seconds: float
    examples: int
    flops: float  # useful operations of all members


class StepLog:
    """The log of a population; metrics are read one step late, so that the device never waits.

    Speeds leave out the time of compilations and validations. So the first lines of a run have no
    speed.
    """

    def __init__(self, population: Population, first_step: int) -> None:
        """
        Args:
            population: the runs.
            first_step: the step at which training starts or resumes.
        """
        self.population = population
        self.tokens = sum(self._tokens(step) for step in range(first_step))
        self.clock = time.perf_counter()
        self._window: collections.deque[_Timed] = collections.deque(maxlen=WINDOW_STEPS)
        self._shapes: set[tuple[int, ...]] = set()
        self._has_compiled = False  # since the last read

    def starts(self, batch: Batch) -> None:
        """Notes that a step begins with this micro-batch; the first of a shape compiles."""
        self._has_compiled |= batch.tokens.shape not in self._shapes
        self._shapes.add(batch.tokens.shape)

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
        self.tokens += self._tokens(step)
        speeds = self._speeds(step, seconds)
        shared = {"num_tokens": self.tokens, **speeds}
        for number, run in enumerate(population.members):
            if run.diverged:
                continue
            metrics = {
                name: float(value[number])
                for name, value in values.items()
                if name not in run.without
            }
            if not metrics.pop("alive"):
                line = record_divergence(population, state, number, step, metrics)
                population.screen.say(line)
                continue
            if step == 0 and not population.experiment.shared.dataset.validation:
                for line in saturation(run.config, metrics.get(SATURATED)):
                    population.screen.say(f"{run.directory.path.name}: {line}")
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
        shown += [
            f"{speeds[name]:.1f} {what}/s"
            for what in ("pairs", "examples")
            if (name := f"{what}_per_second") in speeds
        ]
        update_bar(step + 1, order.total_steps, "  ".join(shown))

    def _speeds(self, step: int, seconds: float) -> dict[str, float]:
        """The speeds of the last steps, this one among them; none before the first timed step.

        Args:
            step: number of the step.
            seconds: the time since the last read, or since the clock was started.
        """
        if not self._has_compiled:
            self._window.append(self._timed(step, seconds))
        self._has_compiled = False
        if not self._window:
            return {}
        last = _Timed(*map(sum, zip(*self._window, strict=True)))
        shared = self.population.experiment.shared
        what = "pairs" if shared.dataset.responses == 2 else "examples"
        return {
            f"{what}_per_second": last.examples / last.seconds,
            "mfu": last.flops / last.seconds / (shared.matmul_rate * shared.mesh.size),
        }

    def _timed(self, step: int, seconds: float) -> _Timed:
        population = self.population
        shared, examples = population.experiment.shared, population.examples_of(step)
        frozen = shared.config.train.mode != "full"
        flops = sum(useful_flops(shared.model_config, e, frozen_base=frozen) for e in examples)
        living = sum(not run.diverged for run in population.members)
        return _Timed(seconds, len(examples), living * flops)
