"""DPO whose pairs count by how likely the policy is to answer so: WPO.

Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization" (2024), arXiv 2406.11827,
eq. 2, without the alignment of section 3.2: that needs the probabilities of all tokens at each
position, and a loss sees sums over responses.

    python run.py --loss dpo configs/losses/wpo.py:wpo --beta 0.1

`check-loss` fails it in one point: the weights are constants for the gradient, so it does not agree
with finite differences. Training takes it.
"""

from __future__ import annotations

import jax

from tddpo_jax.losses.elementary import PerPair, Scalar, exp, maximum, softplus
from tddpo_jax.losses.pair_logps import PairLogps, per_token, scaled_margin


def wpo(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """DPO weighed by the mean probabilities of a token under the policy, of both responses."""
    chosen, rejected = per_token(pairs.logp_chosen, pairs.logp_rejected, pairs)
    weight = exp(-maximum(-chosen, 0) - maximum(-rejected, 0))
    return jax.lax.stop_gradient(weight) * softplus(-scaled_margin(pairs, beta))
