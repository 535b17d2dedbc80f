"""The runs that train in one program, and the inputs of each of their steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from tddpo_jax.batches.layout import Batch, Example, score_counts
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.schema import Config
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.placement.shardings import rows_here
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.runs.sampled_answers import SampledAnswer
from tddpo_jax.scoring.data_sets import Progress, log_probs, place_batch
from tddpo_jax.system.console import Screen
from tddpo_jax.training.optimizer import learning_rate
from tddpo_jax.training.prepare import Experiment
from tddpo_jax.training.state import Knobs, Totals, TrainState, member
from tddpo_jax.training.step import FORWARD, Program
from tddpo_jax.training.step_order import Order


@dataclasses.dataclass
class Member:
    """One run of a population."""

    config: Config
    directory: RunDirectory
    writer: Writer | None  # None if the run had diverged before; only its place is kept
    diverged: bool

    @property
    def without(self) -> set[str]:
        """The metrics of other members that this one's loss does not have."""
        return set() if LOSSES[self.config.loss.name].logit else {SATURATED}

    def log(self, record: dict[str, Any]) -> None:
        """Writes one line of metrics."""
        if self.writer is not None:
            self.writer.log(record)

    def show_answers(self, step: int, answers: Sequence[SampledAnswer]) -> None:
        """Keeps the answers of one validation."""
        if self.writer is not None:
            self.writer.show_answers(step, answers)


@dataclasses.dataclass(frozen=True)
class Population:
    """Runs that share a seed and therefore the order of their batches; it may be a single run."""

    experiment: Experiment
    members: list[Member]
    order: Order
    screen: Screen

    @property
    def program(self) -> Program:
        """The compiled functions for this number of members."""
        return self.experiment.programs.of(len(self.members))

    @property
    def has_ended(self) -> bool:
        """Whether every member has diverged."""
        return all(run.diverged for run in self.members)

    @property
    def config(self) -> Config:
        """The settings that all members share."""
        return self.members[0].config

    def state_of(self, tree: Any, number: int) -> Any:
        """The part of one member in a tree of all members."""
        return member(tree, number, len(self.members))

    def examples_of(self, step: int) -> list[Example]:
        """The training examples of a step."""
        return self.order.examples_of(self.experiment.shared.dataset.train, step)

    def reference_of(self, step: int) -> Float[np.ndarray, "batch values"]:
        """The reference's log-probs of the examples of a step."""
        return self.experiment.reference.train[self.order.numbers(step)]

    def batches_of(self, step: int) -> list[Batch]:
        """The micro-batches of a step, packed and placed on the devices."""
        shared = self.experiment.shared
        here = functools.partial(rows_here, shared.mesh)
        packed = pack(self.examples_of(step), shared.shapes, self.reference_of(step), here)
        return [place_batch(batch, shared.mesh) for batch in packed]

    def totals_of(self, step: int) -> Totals:
        """The numbers of examples and of chosen tokens, by which a step's sums are divided."""
        examples = self.examples_of(step)
        chosen_tokens = sum(score_counts(example)[0] for example in examples)
        return Totals(float(len(examples)), float(chosen_tokens))

    def knobs(self, step: int) -> Knobs:
        """The numbers that the compiled step takes, `[M]` each."""
        members = [self._knobs_of(run.config, step) for run in self.members]
        # These are arrays of a fixed dtype. A Python number is weakly typed, and the step would
        # compile again for it.
        return jax.tree.map(
            lambda *values: np.array(
                values, np.int32 if isinstance(values[0], int) else np.float32
            ),
            *members,
        )

    def _knobs_of(self, config: Config, step: int) -> Knobs:
        objective, loss = self.experiment.programs.setting.objective, config.loss.settings
        rate = learning_rate(config.train, step, self.order.total_steps)
        return Knobs(
            objective.which(loss), objective.scalars(loss), rate, config.train.weight_decay
        )

    def dropout_key(self, step: int, number: int) -> Array | None:
        """The key of the adapters' dropout in micro-batch `number` of a step; None without it."""
        if self.config.train.mode == "full" or self.config.lora.dropout == 0:
            return None
        key = jax.random.fold_in(jax.random.key(self.config.seed), step)
        return jax.random.fold_in(key, number)

    def log_probs(
        self, state: TrainState, examples: Sequence[Example], progress: Progress | None = None
    ) -> tuple[Float[np.ndarray, "M examples values"], Float[np.ndarray, "M examples N"]]:
        """Log-probs of examples under every member's policy, and exact KLs or zeros, in nats."""
        shared, frozen = self.experiment.shared, self.experiment.policy.frozen
        self.experiment.programs.say_if_new(self.program.log_probs, FORWARD, self.screen)
        run = functools.partial(self.program.log_probs, state.trainable, frozen)
        return log_probs(run, examples, shared.shapes, shared.mesh, progress)
