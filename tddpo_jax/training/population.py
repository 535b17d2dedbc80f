"""The runs that train together, and the log-probs of their policies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.scoring.data_sets import Progress, log_probs
from tddpo_jax.training.prepare import Prepared
from tddpo_jax.training.state import TrainState


@dataclasses.dataclass
class Member:
    """One run of the population that is being trained."""

    config: Config
    directory: RunDirectory
    writer: Writer
    diverged: bool


def policy_log_probs(
    prepared: Prepared,
    state: TrainState,
    members: int,
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "M examples N"], Float[np.ndarray, "M examples N"]]:
    """Log-probs and exact KLs (or zeros) of all examples under every member's policy, in nats."""
    return log_probs(
        functools.partial(prepared.program(members).log_probs, state.trainable, prepared.frozen),
        examples,
        prepared.shapes,
        prepared.mesh,
        progress,
    )
