"""Metrics of every validation pair from stored log-probs, and checkpoints that a half chooses.

T validations of a run, P validation pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from tddpo_jax.losses.metric_names import PAIR_METRICS
from tddpo_jax.losses.objective import Objective, Scalars, objective_of
from tddpo_jax.losses.pair_logps import PairLogps, pair_logps
from tddpo_jax.runs.records import best_record

from ...experiment import Cell

PairValues = Mapping[str, Float[np.ndarray, "T P"]]


def pair_values(cell: Cell) -> dict[str, Float[np.ndarray, "T P"]]:
    """The training loop's metrics for each pair at each validation.

    A metric is NaN if it needs numbers that are not stored: exact KLs, the log-probs of tails that
    `loss.ld_alpha` weighs, and lengths in runs of earlier versions. `log_ratio_margin` is added:
    s_w - s_l in nats, a margin that no beta scales. Of single responses there is the loss alone, in
    nats a token.
    """
    assert cell.config is not None
    if cell.logps.shape[-1] == 1:
        return {"loss": -cell.logps[..., 0].astype(np.float64) / cell.lengths.mean()}
    loss = cell.config.loss.settings
    objective = objective_of([loss])
    tokens_per_pair = float(cell.lengths[:, 0].mean()) if len(cell.lengths) else 1.0
    scalars = {**objective.scalars(loss), "tokens_per_pair": tokens_per_pair}
    unknown = np.full_like(cell.reference, np.nan)
    found = []
    tails = [unknown] if objective.decoupled else []
    for logps in cell.logps:
        policy, reference = (
            np.concatenate([each, *tails], axis=-1) for each in (logps, cell.reference)
        )
        pairs = jax.tree.map(jnp.asarray, pair_logps(policy, reference, cell.lengths, unknown))
        found.append(jax.device_get(_metrics(objective, pairs, scalars)))
    values = {name: np.stack([one[name] for one in found]) for name in PAIR_METRICS}
    ratios = cell.logps - cell.reference
    values["log_ratio_margin"] = ratios[..., 0] - ratios[..., 1]
    return {name: value.astype(np.float64) for name, value in values.items()}


# This compiles once per loss, because the numbers of a loss are arguments.
@functools.partial(jax.jit, static_argnums=0)
def _metrics(
    objective: Objective, pairs: PairLogps, scalars: Scalars
) -> dict[str, Float[jax.Array, " P"]]:
    return objective.metrics(0, pairs, scalars)


def chosen_checkpoints(
    cell: Cell, values: PairValues, second: Bool[np.ndarray, " P"]
) -> tuple[int, int]:
    """The validations that the first and the second half of the pairs choose, as places in `steps`.

    Each half chooses by the run's own `train.best_metric`, as training chooses `best/`. A diverged
    run has no choice, nor has a run whose metric is not known pair by pair: the last finite
    validation counts.
    """
    assert cell.config is not None
    last = len(cell.steps) - 1
    if cell.state == "diverged" or not halves_can_choose(cell, values):
        return last, last
    metric = cell.best_metric
    per_pair = values[name_of_pairs(metric)]
    first, other = (_best(cell.steps, per_pair[:, half], metric) for half in (~second, second))
    return first, other


def halves_can_choose(cell: Cell, values: PairValues) -> bool:
    """Whether the run's `train.best_metric` is known pair by pair, not only as a mean."""
    found = values.get(name_of_pairs(cell.best_metric))
    return found is not None and bool(np.isfinite(found).all())


def name_of_pairs(metric: str) -> str:
    """The key of `pair_values` for a metric of `metrics.jsonl`."""
    return metric.removeprefix("eval_")


def _best(steps: Sequence[int], per_pair: Float[np.ndarray, "T h"], metric: str) -> int:
    means = per_pair.mean(axis=1)
    best = best_record(
        [{"step": step, metric: mean} for step, mean in zip(steps, means, strict=True)], metric
    )
    return steps.index(best["step"]) if best else len(steps) - 1
