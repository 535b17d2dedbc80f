"""Which pairs each step takes: a pure function of seed and step, so there is nothing to save."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tddpo_jax.batches.layout import Pair
from tddpo_jax.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of `pairs` training pairs: shuffled anew every epoch, the last step a remainder."""

    pairs: int
    batch_pairs: int
    total_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.pairs // self.batch_pairs)

    def numbers(self, step: int) -> Int[np.ndarray, " batch"]:
        """The numbers of the pairs of step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return _permutation(self.seed, epoch, self.pairs)[
            place * self.batch_pairs : (place + 1) * self.batch_pairs
        ]

    def pairs_of(self, pairs: Sequence[Pair], step: int) -> list[Pair]:
        """The pairs of step `step`."""
        return [pairs[number] for number in self.numbers(step)]

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(pairs)


def make_order(config: Config, pairs: int) -> Order:
    """`train.max_steps` counts whatever the epochs; without it, `train.epochs` epochs."""
    train = config.train
    steps = train.max_steps or train.epochs * -(-pairs // train.batch_pairs)
    return Order(pairs, train.batch_pairs, steps, config.seed)
