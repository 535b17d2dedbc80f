"""What a loss that anyone may train with must pass, and what it does to a margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tddpo_jax.errors import UserError
from tddpo_jax.losses.loss import Loss
from tddpo_jax.losses.pair_logps import PairLogps
from tddpo_jax.losses.trial import (
    at_start,
    check,
    gradient,
    moved,
    pairs_of,
    reads_reference,
    values_of,
)

# The largest |x| that must stay finite, for x in nats and for x scaled by beta.
EXTREME = 1e4
# A central difference in float64 with this step is right to about ten digits.
STEP, TOLERANCE = 1e-5, 1e-6
# A curve shows scaled margins up to this.
CURVE_ENDS, CURVE_POINTS = 8.0, 121
BASE_LOGP, BASE_LENGTH = -20.0, 10.0


class Finding(NamedTuple):
    """One line of an examination; `passed` is None if it is a remark."""

    passed: bool | None
    text: str


class Curve(NamedTuple):
    """A loss and its slope against the margin s_w - s_l of one pair, in nats; `[N]` each."""

    margins: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]
    slopes: Float[np.ndarray, " N"]


def examine(loss: Loss, settings: Mapping[str, Any]) -> list[Finding]:
    """Everything that is found out about a loss; after a failed trial nothing else is tried.

    Args:
        loss: the loss.
        settings: the value of each of its settings.
    """
    try:
        check(loss, settings)
    except UserError as error:
        return [Finding(False, str(error).removeprefix("loss.name: "))]
    return [
        Finding(True, "pure: a finite value per pair, the same each time, from that pair alone"),
        _extremes(loss, settings),
        _differences(loss, settings),
        *_direction(loss, settings),
        _start(loss, settings),
        _reference(loss, settings),
    ]


def curve_of(loss: Loss, settings: Mapping[str, Any]) -> Curve:
    """The curve of a pair whose responses are equally likely and long under the reference.

    The chosen response gains what the rejected one loses.
    """
    end = CURVE_ENDS / _scale(settings, loss)
    margins = np.linspace(-end, end, CURVE_POINTS)
    pairs = _at_margins(margins)
    chosen, rejected = gradient(loss, settings, pairs)
    # The margin grows by 1 if the one grows by a half and the other falls by a half.
    slopes = (np.asarray(chosen) - np.asarray(rejected)) / 2
    return Curve(margins, np.asarray(values_of(loss, settings, pairs), np.float64), slopes)


def _at_margins(margins: Float[np.ndarray, " N"]) -> PairLogps:
    pairs = pairs_of(margins / 2, -margins / 2)
    same, length = jnp.full(len(margins), BASE_LOGP), jnp.full(len(margins), BASE_LENGTH)
    half = jnp.asarray(margins / 2, jnp.float32)
    return pairs._replace(
        logp_chosen=same + half,
        logp_rejected=same - half,
        ref_logp_chosen=same,
        ref_logp_rejected=same,
        length_chosen=length,
        length_rejected=length,
    )


def _scale(settings: Mapping[str, Any], loss: Loss) -> float:
    """What scales the margin: beta, if the loss has one above 0 that is less than 1."""
    beta = float(settings["beta"]) if "beta" in loss.settings else 1.0
    return min(beta, 1.0) or 1.0


def _extremes(loss: Loss, settings: Mapping[str, Any]) -> Finding:
    end = EXTREME / _scale(settings, loss)
    sizes = np.geomspace(1, end, 25)
    ends = np.concatenate([-sizes[::-1], [0.0], sizes])
    zero = np.zeros_like(ends)
    cases = [pairs_of(*ratios) for ratios in ((ends / 2, -ends / 2), (ends, zero), (zero, -ends))]
    finite = np.stack(
        [
            np.isfinite([values_of(loss, settings, pairs), *gradient(loss, settings, pairs)]).all(0)
            for pairs in cases
        ]
    ).all(0)
    if finite.all():
        return Finding(True, f"value and gradient are finite for margins up to {end:,.0f} nats")
    first = min(ends[~finite], key=abs)
    return Finding(False, f"value or gradient is not finite at a margin of {first:,.1f} nats")


def _differences(loss: Loss, settings: Mapping[str, Any]) -> Finding:
    with jax.enable_x64(True):
        pairs = jax.tree.map(lambda column: jnp.asarray(column, jnp.float64), moved())
        dtype = values_of(loss, settings, pairs).dtype
        if dtype != jnp.float64:
            return Finding(False, f"gives {dtype} for pairs in float64, which loses their digits")
        exact = gradient(loss, settings, pairs)
        largest = max(
            _difference(loss, settings, pairs, name, np.asarray(slope))
            for name, slope in zip(("logp_chosen", "logp_rejected"), exact, strict=True)
        )
    agrees = bool(largest <= TOLERANCE)
    verb = "agrees" if agrees else "does not agree"
    return Finding(
        agrees, f"gradient {verb} with finite differences: they differ by at most {largest:.1g}"
    )


def _difference(
    loss: Loss,
    settings: Mapping[str, Any],
    pairs: PairLogps,
    name: str,
    slope: Float[np.ndarray, " P"],
) -> float:
    """The largest difference of a gradient from a central difference, relative above 1."""
    at = getattr(pairs, name)
    above, below = (
        np.asarray(values_of(loss, settings, pairs._replace(**{name: at + step})))
        for step in (STEP, -STEP)
    )
    apart = np.abs((above - below) / (2 * STEP) - slope) / np.maximum(np.abs(slope), 1)
    return float(apart.max())


def _direction(loss: Loss, settings: Mapping[str, Any]) -> list[Finding]:
    """A loss must prefer a large margin, or at least pull towards one at the start.

    DiscoPOP does the first alone. APO-down pushes the chosen response down, and is meant to.
    """
    curve = curve_of(loss, settings)
    prefers = curve.values[-1] < curve.values[0]
    pulls = curve.slopes[len(curve.slopes) // 2] < 0
    chosen, _ = gradient(loss, settings, _at_margins(np.zeros(1)))
    costs = "less than" if prefers else "no less than"
    towards = "up" if pulls else "not up"
    raises = "is" if float(chosen[0]) < 0 else "is not"
    return [
        Finding(bool(prefers or pulls), f"a large margin costs {costs} a negative one"),
        Finding(None, f"at the start the margin is pulled {towards}"),
        Finding(None, f"at the start the chosen response {raises} pushed up"),
    ]


def _start(loss: Loss, settings: Mapping[str, Any]) -> Finding:
    values = np.asarray(values_of(loss, settings, at_start()))
    low, high = values.min(), values.max()
    text = f"{low:.4f} for every pair" if high - low < 1e-4 else f"{low:.4g} to {high:.4g} by pair"
    return Finding(None, f"where the policy is the reference, the value is {text}")


def _reference(loss: Loss, settings: Mapping[str, Any]) -> Finding:
    reads = reads_reference(loss, settings)
    return Finding(None, f"{'reads' if reads else 'does not read'} the reference's log-probs")
