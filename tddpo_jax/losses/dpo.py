"""DPO and the losses that see nothing of a pair but its margin.

Per pair, in nats:

    s_w = logp_chosen - ref_logp_chosen          s_l = logp_rejected - ref_logp_rejected
    x = beta * (s_w - s_l)                       the scaled margin; `dpo_margin` replaces the
                                                 difference by that of other numbers
    -log sigmoid(x) = softplus(-x)               how it is computed: no overflow, no log of zero

The rows at the end of the file declare each loss and its settings to everything else.
"""

from __future__ import annotations

from tddpo_jax.losses.elementary import (
    PerPair,
    Scalar,
    exp,
    log,
    log1p,
    log_sigmoid,
    relu,
    sigmoid,
    softplus,
    where,
)
from tddpo_jax.losses.loss import ON_PAIRS, Loss, Setting
from tddpo_jax.losses.pair_logps import MARGINS, PairLogps, margin_terms


def margin_of(pairs: PairLogps, *, beta: Scalar, dpo_margin: str) -> PerPair:
    """x: beta times the difference of `margin_terms`; DPO's gradient weight is sigmoid(-x)."""
    chosen, rejected = margin_terms(pairs, dpo_margin)
    return beta * (chosen - rejected)


def margin_rewards(pairs: PairLogps, *, beta: Scalar, dpo_margin: str) -> tuple[PerPair, PerPair]:
    """beta times the two numbers whose difference is the margin."""
    chosen, rejected = margin_terms(pairs, dpo_margin)
    return beta * chosen, beta * rejected


def dpo(pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str) -> PerPair:
    """DPO: -log sigmoid(x); with label smoothing e, (1 - e) l(x) + e l(-x), "conservative" DPO.

    TRL's `sigmoid` is this loss with the label smoothing silently ignored; here it counts.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.
        label_smoothing: probability that a label is flipped, from 0 to less than 1/2.
        dpo_margin: the form of the margin, see `margin_terms`.

    Returns:
        [P] values, 0 or more.

    Example:
        Before the first step the policy is the reference, so the loss of every pair is log 2.

        >>> import jax.numpy as jnp
        >>> zero, one = jnp.zeros(1), jnp.ones(1)
        >>> pairs = PairLogps(-9 * one, -7 * one, -9 * one, -7 * one, one, one, zero, zero)
        >>> values = dpo(pairs, beta=0.1, label_smoothing=0.0, dpo_margin="log_ratio")
        >>> round(values.item(), 4)
        0.6931

    References:
        Rafailov et al., "Direct Preference Optimization" (2023), arXiv 2305.18290, eq. 7.
        E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023).
    """
    x = margin_of(pairs, beta=beta, dpo_margin=dpo_margin)
    return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)


def discopop(pairs: PairLogps, *, beta: Scalar, discopop_tau: Scalar, dpo_margin: str) -> PerPair:
    """DiscoPOP (LRML): (1 - g) * softplus(-x) + g * exp(-x) with the gate g = sigmoid(x / tau_d).

    Computed with g * exp(-x) = exp(-x + log g): as written, it is 0 * inf = NaN for x < -88.7 in
    float32. At beta >= 2.5 such x are within reach, so this can make failures like the published
    ones. For tau_d > 1 the gate closes slower than exp(-x) grows and the loss itself explodes at
    negative x.

    At tau_d = 0.05 the slope at x = 0 is +0.784, the wrong sign: there is a local minimum at
    x = -0.1186, and pairs to the left of the barrier at x = +0.0720 are drawn into it.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.
        discopop_tau: temperature of the gate, above 0; the paper's is 0.05.
        dpo_margin: the form of the margin, see `margin_terms`.

    Returns:
        [P] values, 0 or more.

    References:
        Lu et al., "Discovering Preference Optimization Algorithms with and for Large Language
        Models" (2024), arXiv 2406.08414, eq. 5.
    """
    x = margin_of(pairs, beta=beta, dpo_margin=dpo_margin)
    gate = x / discopop_tau
    return sigmoid(-gate) * softplus(-x) + exp(log_sigmoid(gate) - x)


def hinge(pairs: PairLogps, *, beta: Scalar, dpo_margin: str) -> PerPair:
    """Hinge loss of SLiC on DPO's margin: max(0, 1 - x). At the kink the gradient is 0.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.
        dpo_margin: the form of the margin, see `margin_terms`.

    Returns:
        [P] values, 0 or more.

    References:
        Zhao et al., "SLiC-HF" (2023), arXiv 2305.10425, section 2; with the reference inside the
        margin: Liu et al., "Statistical Rejection Sampling" (2023), arXiv 2309.06657.
    """
    return relu(1 - margin_of(pairs, beta=beta, dpo_margin=dpo_margin))


def robust(pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str) -> PerPair:
    """Robust DPO: ((1 - e) l(x) - e l(-x)) / (1 - 2e) with l(x) = -log sigmoid(x), e < 1/2.

    Unbiased: if labels are flipped with probability e, its expectation over flips is DPO's loss on
    the true labels. It is not bounded below.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.
        label_smoothing: probability that a label was flipped, from 0 to less than 1/2.
        dpo_margin: the form of the margin, see `margin_terms`.

    Returns:
        [P] values.

    References:
        Chowdhury et al., "Provably Robust DPO" (2024), arXiv 2403.00409, section 3.1.
    """
    x = margin_of(pairs, beta=beta, dpo_margin=dpo_margin)
    clean = (1 - label_smoothing) * softplus(-x)
    flipped = label_smoothing * softplus(x)
    return (clean - flipped) / (1 - 2 * label_smoothing)


# What EXO's authors recommend, and what its loss uses where the label smoothing is 0.
EXO_LABEL_SMOOTHING = 1e-3


def exo_pair(
    pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str
) -> PerPair:
    """EXO on pairs: KL(q || p), q = (sigmoid(x), sigmoid(-x)), p = (1 - e, e).

    The divergence is infinite at e = 0 (any q puts mass on the rejected response, p none), so 0
    stands for the 1e-3 of the paper; TRL 1.16 refuses 0.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.
        label_smoothing: mass that p leaves to the rejected response, from 0 to less than 1/2.
        dpo_margin: the form of the margin, see `margin_terms`.

    Returns:
        [P] values, 0 or more.

    References:
        Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment" (2024),
        arXiv 2402.00856, eq. 16.
    """
    smoothing = where(label_smoothing > 0, label_smoothing, EXO_LABEL_SMOOTHING)
    x = margin_of(pairs, beta=beta, dpo_margin=dpo_margin)
    chosen = sigmoid(x) * (log_sigmoid(x) - log1p(-smoothing))
    rejected = sigmoid(-x) * (log_sigmoid(-x) - log(smoothing))
    return chosen + rejected


# ---- rows ----------------------------------------------------------------------------------------

LABEL_SMOOTHING = Setting(
    default=0.0, at_least=0.0, below=0.5, help="probability of a flipped label"
)
DISCOPOP_TAU = Setting(default=0.05, above=0.0, help="DiscoPOP's own temperature")
DPO_MARGIN = Setting(
    default="log_ratio",
    choices=MARGINS,
    help="margin of DPO and of the losses that see nothing else of a pair",
)
SMOOTHED = {**ON_PAIRS, "label_smoothing": LABEL_SMOOTHING, "dpo_margin": DPO_MARGIN}

DPO = Loss(dpo, SMOOTHED, rewards=margin_rewards, logit=margin_of)
DISCOPOP = Loss(
    discopop,
    {**ON_PAIRS, "discopop_tau": DISCOPOP_TAU, "dpo_margin": DPO_MARGIN},
    rewards=margin_rewards,
)
HINGE = Loss(hinge, {**ON_PAIRS, "dpo_margin": DPO_MARGIN}, rewards=margin_rewards)
ROBUST = Loss(robust, SMOOTHED, rewards=margin_rewards)
EXO_PAIR = Loss(exo_pair, SMOOTHED, rewards=margin_rewards)
