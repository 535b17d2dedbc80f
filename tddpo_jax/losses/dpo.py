"""Losses on preference pairs: one pure function per loss, one value per pair.

Notation, per pair (all in nats, sums over the response's tokens, end-of-turn included):

    s_w = logp_chosen - ref_logp_chosen          s_l = logp_rejected - ref_logp_rejected
    x = beta * (s_w - s_l)                       the scaled margin of the DPO family; `dpo_margin`
                                                 replaces the difference by that of other numbers
    -log sigmoid(x) = softplus(-x)               how it is computed: no overflow, no log of zero

Every loss takes `pairs: PairLogps` and, by keyword, the settings it reads, and returns values of
shape [P] in the dtype of `pairs`. The loss of a batch is their mean. Settings may be traced, so one
compiled step serves every beta, tau and label smoothing. Names and meanings follow TRL 1.16's
`DPOTrainer`; each docstring says where we differ and why. The rows at the end of the file declare
each loss and its settings to everything else.
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
from tddpo_jax.losses.loss import BETA, LD_ALPHA, Loss, Setting
from tddpo_jax.losses.pair_logps import (
    MARGINS,
    PairLogps,
    Rewards,
    chosen_log_ratio,
    log_ratios,
    margin_terms,
    per_token,
    scaled_log_ratios,
    scaled_margin,
)


def margin_of(pairs: PairLogps, beta: Scalar, form: str) -> PerPair:
    """x of the losses that see nothing but a margin: beta times a difference of `margin_terms`."""
    chosen, rejected = margin_terms(pairs, form)
    return beta * (chosen - rejected)


def margin_rewards(pairs: PairLogps, *, beta: Scalar, dpo_margin: str) -> tuple[PerPair, PerPair]:
    """beta times the two numbers whose difference is the margin."""
    chosen, rejected = margin_terms(pairs, dpo_margin)
    return beta * chosen, beta * rejected


def dpo_logit(pairs: PairLogps, *, beta: Scalar, dpo_margin: str) -> PerPair:
    """x: the gradient weight of DPO without label smoothing is sigmoid(-x)."""
    return margin_of(pairs, beta, dpo_margin)


def dpo(
    pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str = "log_ratio"
) -> PerPair:
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
        >>> round(dpo(pairs, beta=0.1, label_smoothing=0.0).item(), 4)
        0.6931

    References:
        Rafailov et al., "Direct Preference Optimization" (2023), arXiv 2305.18290, eq. 7.
        E. Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023).
    """
    x = margin_of(pairs, beta, dpo_margin)
    return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)


def discopop(
    pairs: PairLogps, *, beta: Scalar, discopop_tau: Scalar, dpo_margin: str = "log_ratio"
) -> PerPair:
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
    x = margin_of(pairs, beta, dpo_margin)
    gate = x / discopop_tau
    return sigmoid(-gate) * softplus(-x) + exp(log_sigmoid(gate) - x)


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


def hinge(pairs: PairLogps, *, beta: Scalar, dpo_margin: str = "log_ratio") -> PerPair:
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
    return relu(1 - margin_of(pairs, beta, dpo_margin))


def robust(
    pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str = "log_ratio"
) -> PerPair:
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
    x = margin_of(pairs, beta, dpo_margin)
    clean = (1 - label_smoothing) * softplus(-x)
    flipped = label_smoothing * softplus(x)
    return (clean - flipped) / (1 - 2 * label_smoothing)


# What EXO's authors recommend, and what its loss uses where the label smoothing is 0.
EXO_LABEL_SMOOTHING = 1e-3


def exo_pair(
    pairs: PairLogps, *, beta: Scalar, label_smoothing: Scalar, dpo_margin: str = "log_ratio"
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
    x = margin_of(pairs, beta, dpo_margin)
    chosen = sigmoid(x) * (log_sigmoid(x) - log1p(-smoothing))
    rejected = sigmoid(-x) * (log_sigmoid(-x) - log(smoothing))
    return chosen + rejected


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


def sft(pairs: PairLogps, *, tokens_per_pair: Scalar) -> PerPair:
    """Negative log-likelihood of the chosen response, over the mean length of the batch's.

    The mean of the values is thus a mean over tokens, not over pairs.

    Args:
        pairs: P pairs.
        tokens_per_pair: the mean of `length_chosen` over the batch, of which `pairs` may be a part.

    Returns:
        [P] values in nats, 0 or more.

    Example:
        >>> import jax.numpy as jnp
        >>> zero, one = jnp.zeros(1), jnp.ones(1)
        >>> pairs = PairLogps(-9 * one, -7 * one, -8 * one, -7 * one, 3 * one, one, zero, zero)
        >>> sft(pairs, tokens_per_pair=3.0).tolist()
        [3.0]
    """
    return -pairs.logp_chosen / tokens_per_pair


def sft_rewards(pairs: PairLogps) -> Rewards:
    """The log-ratios in nats; a prompt with one response has no rejected one."""
    if pairs.logp_rejected is None:
        return chosen_log_ratio(pairs), None
    return log_ratios(pairs)


# ---- rows ----------------------------------------------------------------------------------------

# Rewards are beta * s where a row says nothing else, as TRL reports them, also for the losses that
# divide by the length.
LABEL_SMOOTHING = Setting(
    default=0.0, at_least=0.0, below=0.5, help="probability of a flipped label"
)
DISCOPOP_TAU = Setting(default=0.05, above=0.0, help="DiscoPOP's own temperature")
DPO_MARGIN = Setting(
    default="log_ratio",
    choices=MARGINS,
    help="margin of DPO and of the losses that see nothing else of a pair",
)
SIMPO_GAMMA = Setting(default=0.5, at_least=0.0, help="SimPO's target reward margin")
ON_PAIRS = {"beta": BETA, "ld_alpha": LD_ALPHA}

DPO_AND_RELATIVES = (
    Loss(
        dpo,
        {**ON_PAIRS, "label_smoothing": LABEL_SMOOTHING, "dpo_margin": DPO_MARGIN},
        rewards=margin_rewards,
        logit=dpo_logit,
    ),
    Loss(
        discopop,
        {**ON_PAIRS, "discopop_tau": DISCOPOP_TAU, "dpo_margin": DPO_MARGIN},
        rewards=margin_rewards,
    ),
    Loss(ipo, {**ON_PAIRS}),
    Loss(hinge, {**ON_PAIRS, "dpo_margin": DPO_MARGIN}, rewards=margin_rewards),
    Loss(
        robust,
        {**ON_PAIRS, "label_smoothing": LABEL_SMOOTHING, "dpo_margin": DPO_MARGIN},
        rewards=margin_rewards,
    ),
    Loss(
        exo_pair,
        {**ON_PAIRS, "label_smoothing": LABEL_SMOOTHING, "dpo_margin": DPO_MARGIN},
        rewards=margin_rewards,
    ),
    Loss(nca_pair, {**ON_PAIRS}),
    Loss(bco_pair, {**ON_PAIRS}),
    Loss(sppo_hard, {**ON_PAIRS}),
    Loss(apo_zero, {**ON_PAIRS}),
    Loss(apo_down, {**ON_PAIRS}),
    Loss(sigmoid_norm, {**ON_PAIRS}, logit=sigmoid_norm_logit),
    Loss(simpo, {**ON_PAIRS, "simpo_gamma": SIMPO_GAMMA}, rewards=simpo_rewards, logit=simpo_logit),
    Loss(sft, {}, rewards=sft_rewards, responses=1),
)
