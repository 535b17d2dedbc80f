"""Losses that weigh the two responses of a pair apart, or fix the form of their margin.

Notation as in `dpo`: s_w and s_l are the log-ratios, x = beta * (s_w - s_l). Rewards are beta * s
where a row says nothing else, as TRL reports them, also for the losses that divide by the length.
"""

from __future__ import annotations

from tddpo_jax.losses.elementary import PerPair, Scalar, sigmoid, softplus
from tddpo_jax.losses.loss import ON_PAIRS, Loss, Setting
from tddpo_jax.losses.pair_logps import (
    PairLogps,
    log_ratios,
    per_token,
    scaled_log_ratios,
    scaled_margin,
)


def ipo(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """IPO: (s_w / |y_w| - s_l / |y_l| - 1 / (2 beta))^2; infinite at beta = 0.

    The log-ratios are means over tokens, as in TRL: a square of sums would grow with the length.

    Args:
        pairs: P pairs.
        beta: inverse of twice the target margin, above 0.

    Returns:
        [P] values, 0 or more.

    References:
        Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences"
        (2023), arXiv 2310.12036, eq. 17, where beta is called tau.
    """
    chosen, rejected = per_token(*log_ratios(pairs), pairs)
    return (chosen - rejected - 0.5 / beta) ** 2


def nca_pair(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """NCA on pairs: l(r_w) + l(-r_w) / 2 + l(-r_l) / 2, l(r) = -log sigmoid(r), r = beta * s.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.

    Returns:
        [P] values, 0 or more.

    References:
        Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards" (2024),
        arXiv 2402.05369, section 4.1.
    """
    chosen, rejected = scaled_log_ratios(pairs, beta=beta)
    return softplus(-chosen) + 0.5 * softplus(chosen) + 0.5 * softplus(rejected)


def bco_pair(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """BCO without its reward shift, as in TRL 1.16: softplus(-beta s_w) + softplus(beta s_l).

    The paper subtracts a running mean of the rewards from both; TRL's `bco_pair` does not.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.

    Returns:
        [P] values, 0 or more.

    References:
        Jung et al., "Binary Classifier Optimization for Large Language Model Alignment" (2024),
        arXiv 2404.04656, section 4.
    """
    chosen, rejected = scaled_log_ratios(pairs, beta=beta)
    return softplus(-chosen) + softplus(rejected)


def sppo_hard(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """SPPO with hard preferences: (s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2.

    Infinite at beta = 0.

    Args:
        pairs: P pairs.
        beta: inverse of twice the targets of the log-ratios, above 0.

    Returns:
        [P] values, 0 or more.

    References:
        Wu et al., "Self-Play Preference Optimization" (2024), arXiv 2405.00675, eq. 4.7 with the
        preference probability 1 for the chosen response and 0 for the rejected one.
    """
    chosen, rejected = log_ratios(pairs)
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """APO-zero: sigmoid(-beta * s_w) + sigmoid(beta * s_l), chosen up and rejected down.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.

    Returns:
        [P] values between 0 and 2.

    References:
        D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions" (2024),
        arXiv 2408.06266, eq. 7.
    """
    chosen, rejected = scaled_log_ratios(pairs, beta=beta)
    return sigmoid(-chosen) + sigmoid(rejected)


def apo_down(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """APO-down: sigmoid(beta * s_w) + sigmoid(-x), chosen down and rejected further down.

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.

    Returns:
        [P] values between 0 and 2.

    References:
        D'Oosterlinck et al. (2024), arXiv 2408.06266, eq. 8.
    """
    chosen, _ = scaled_log_ratios(pairs, beta=beta)
    return sigmoid(chosen) + sigmoid(-scaled_margin(pairs, beta))


def sigmoid_norm(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """Length-normalised DPO: -log sigmoid(beta * (s_w / |y_w| - s_l / |y_l|)).

    Args:
        pairs: P pairs.
        beta: scale of the log-ratios, above 0.

    Returns:
        [P] values, 0 or more.

    References:
        Lambert et al., "Tulu 3" (2024), arXiv 2411.15124, section 5.
    """
    return softplus(-sigmoid_norm_logit(pairs, beta=beta))


def sigmoid_norm_logit(pairs: PairLogps, *, beta: Scalar) -> PerPair:
    """beta * (s_w / |y_w| - s_l / |y_l|)."""
    chosen, rejected = per_token(*log_ratios(pairs), pairs)
    return beta * (chosen - rejected)


def simpo(pairs: PairLogps, *, beta: Scalar, simpo_gamma: Scalar) -> PerPair:
    """SimPO: -log sigmoid(beta * (logp_chosen / |y_w| - logp_rejected / |y_l|) - gamma).

    No reference. Gamma is the target margin of the rewards beta * logp / |y|, in the paper's own
    units: not the ratio gamma / beta that some recipes quote.

    Args:
        pairs: P pairs.
        beta: scale of the log-probabilities per token, above 0.
        simpo_gamma: target margin of the rewards, 0 or more.

    Returns:
        [P] values, 0 or more.

    References:
        Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward" (2024),
        arXiv 2405.14734, eq. 6.
    """
    return softplus(-simpo_logit(pairs, beta=beta, simpo_gamma=simpo_gamma))


def simpo_logit(pairs: PairLogps, *, beta: Scalar, simpo_gamma: Scalar) -> PerPair:
    """beta * (logp_chosen / |y_w| - logp_rejected / |y_l|) - gamma."""
    chosen, rejected = per_token(pairs.logp_chosen, pairs.logp_rejected, pairs)
    return beta * (chosen - rejected) - simpo_gamma


def simpo_rewards(pairs: PairLogps, *, beta: Scalar) -> tuple[PerPair, PerPair]:
    """The rewards of SimPO's paper, beta * logp / |y|, of the chosen and rejected responses."""
    chosen, rejected = per_token(pairs.logp_chosen, pairs.logp_rejected, pairs)
    return beta * chosen, beta * rejected


# ---- rows ----------------------------------------------------------------------------------------

SIMPO_GAMMA = Setting(default=0.5, at_least=0.0, help="SimPO's target reward margin")

IPO = Loss(ipo, ON_PAIRS)
WEIGHED_APART = tuple(
    Loss(function, ON_PAIRS) for function in (nca_pair, bco_pair, sppo_hard, apo_zero, apo_down)
)
SIGMOID_NORM = Loss(sigmoid_norm, ON_PAIRS, logit=sigmoid_norm_logit)
SIMPO = Loss(
    simpo, {**ON_PAIRS, "simpo_gamma": SIMPO_GAMMA}, rewards=simpo_rewards, logit=simpo_logit
)
