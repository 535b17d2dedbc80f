"""DPO with another divergence than the reverse KL between policy and reference.

The margin is beta * (f'(t_w) - f'(t_l)) with t = exp(s), the ratio of the two probabilities. DPO is
f'(t) = log t + 1. Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with
Diverse Divergence Constraints" (2023), arXiv 2309.16240, table 1.

    python -m tddpo_jax check-loss configs/losses/f_divergences.py:forward_kl_dpo --beta 0.1
    python run.py --loss dpo configs/losses/f_divergences.py:alpha_dpo --loss.set alpha=0.3 0.5
"""

from __future__ import annotations

from tddpo_jax.losses.elementary import PerPair, Scalar, exp, log_sigmoid, maximum, softplus
from tddpo_jax.losses.pair_logps import PairLogps, log_ratios

# exp of more than this is no longer far below the largest number in float32.
LARGEST = 80.0


def forward_kl_dpo(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """f-DPO with the forward KL, f(t) = -log t: the scores are -1 / t."""
    chosen, rejected = (-exp(-maximum(s, -LARGEST)) for s in log_ratios(pairs))
    return softplus(-beta * (chosen - rejected))


def js_dpo(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """f-DPO with the Jensen-Shannon divergence: the scores are log(2 t / (1 + t))."""
    chosen, rejected = (log_sigmoid(s) for s in log_ratios(pairs))
    return softplus(-beta * (chosen - rejected))


def alpha_dpo(pairs: PairLogps, *, beta: Scalar, alpha: Scalar = 0.5) -> PerPair:
    """f-DPO with an alpha divergence: the scores are t^(alpha - 1) / (alpha - 1), alpha not 1.

    Alpha is TRL's `f_alpha_divergence_coef`; the paper's is 1 - alpha.
    """
    power = alpha - 1
    chosen, rejected = (exp(-maximum(-power * s, -LARGEST)) / power for s in log_ratios(pairs))
    return softplus(-beta * (chosen - rejected))
