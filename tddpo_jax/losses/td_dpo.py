"""TD-DPO, the loss that this project exists for."""

from __future__ import annotations

from tddpo_jax.losses.elementary import PerPair, Scalar, softplus
from tddpo_jax.losses.loss import BETA, LD_ALPHA, Loss, Setting
from tddpo_jax.losses.pair_logps import MARGINS, PairLogps, log_ratios, margin_terms


def td_dpo(pairs: PairLogps, *, beta: Scalar, tau: Scalar, margin: str, kl: str) -> PerPair:
    """Temperature-Decoupled DPO: -log sigmoid(margin / tau) + beta * KL term.

    By default the margin is logp_chosen - logp_rejected and has no reference in it: tau alone
    scales the preference, beta alone the pull towards the reference. The second term is
    (s_w^2 + s_l^2) / 2, Schulman's k2 in form. Dataset responses are not samples of the policy, so
    it is a penalty on the log-ratios, symmetric in the two policies, and no estimate of
    KL(p_theta || p0). Its gradient per branch is beta * s, so a pair can be at rest only within
    |s| <= 1 / (tau * beta) nats. (Not the token-mask method of the same letters.)

    Args:
        pairs: P pairs.
        beta: weight of the KL term, at least 0.
        tau: temperature of the margin, above 0; only the margin is divided by it.
        margin: `policy` as above; `log_ratio`: s_w - s_l, as in DPO; `length_normalized`:
            logp_chosen / |y_w| - logp_rejected / |y_l|, per token and without the reference.
        kl: `k2` as above; `full`: kl_chosen + kl_rejected, exact over the vocabulary at each
            position of the two responses.

    Returns:
        [P] values in nats.

    Example:
        A margin of 2 nats at the temperature 2, and log-ratios of 1 and -1 nat: the loss is
        softplus(-1) + 0.1 * 1.

        >>> import jax.numpy as jnp
        >>> zero, one = jnp.zeros(1), jnp.ones(1)
        >>> pairs = PairLogps(-5 * one, -7 * one, -6 * one, -6 * one, one, one, zero, zero)
        >>> round(td_dpo(pairs, beta=0.1, tau=2.0, margin="policy", kl="k2").item(), 4)
        0.4133

    Raises:
        ValueError: `margin` or `kl` is not one of the choices.

    References:
        J. Schulman, "Approximating KL Divergence" (2020), for k2.
    """
    chosen, rejected = margin_terms(pairs, margin)
    return softplus(-(chosen - rejected) / tau) + beta * _kl(pairs, kl)


def td_dpo_logit(pairs: PairLogps, *, tau: Scalar, margin: str) -> PerPair:
    """margin / tau: its gradient weight is sigmoid(-margin / tau)."""
    chosen, rejected = margin_terms(pairs, margin)
    return (chosen - rejected) / tau


def _kl(pairs: PairLogps, kl: str) -> PerPair:
    if kl == "k2":
        chosen, rejected = log_ratios(pairs)
        return 0.5 * (chosen**2 + rejected**2)
    if kl == "full":
        return pairs.kl_chosen + pairs.kl_rejected
    raise ValueError(f"loss.kl: must be k2 or full, got {kl!r}")


# ---- its row -------------------------------------------------------------------------------------

# Its rewards are the log-ratios in nats: here beta weighs a penalty, and does not scale a reward.
TD_DPO = Loss(
    td_dpo,
    {
        "beta": BETA,
        "ld_alpha": LD_ALPHA,
        "tau": Setting(default=1.0, above=0.0, help="temperature of TD-DPO's preference margin"),
        "margin": Setting(
            default="policy",
            choices=MARGINS,
            help="TD-DPO's margin",
        ),
        "kl": Setting(
            default="k2",
            choices=("k2", "full"),
            help="TD-DPO's KL term: squared log-ratios, or exact over the vocabulary",
        ),
    },
    rewards=log_ratios,
    logit=td_dpo_logit,
    needs_beta=False,
    exact_kl=lambda settings: settings["kl"] == "full",
)
