"""The examples of each step; they depend only on seed and step, so nothing needs to be saved."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the training examples.

    Every epoch shuffles them anew, and shares them evenly over its steps: the sizes of two steps
    differ by at most one. A small last step would have noisy gradients.
    """

    examples: int  # number of training examples
    steps_per_epoch: int
    total_steps: int
    seed: int

    @property
    def per_step(self) -> str:
        """The number of examples per step in words, such as `60` or `127 or 128`."""
        smaller, rest = divmod(self.examples, self.steps_per_epoch)
        return f"{smaller} or {smaller + 1}" if rest else str(smaller)

    def numbers(self, step: int) -> Int[np.ndarray, " batch"]:
        """The numbers of the examples of step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first, end = (
            border * self.examples // self.steps_per_epoch for border in (place, place + 1)
        )
        return _permutation(self.seed, epoch, self.examples)[first:end]

    def examples_of(self, examples: Sequence[Example], step: int) -> list[Example]:
        """The examples of step `step`."""
        return [examples[number] for number in self.numbers(step)]

    def epoch(self, step: int) -> float:
        """Finished epochs after `step` steps, as a fraction."""
        return step / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` steps are a whole number of epochs."""
        return step % self.steps_per_epoch == 0


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def make_order(config: Config, examples: int) -> Order:
    """The order of a run of `train.max_steps` steps, or else of `train.epochs` epochs.

    Args:
        config: the settings of the run.
        examples: the number of training examples.
    """
    train = config.train
    return Order(examples, train.steps_per_epoch(examples), train.steps(examples), config.seed)
