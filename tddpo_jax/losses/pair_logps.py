"""What a loss sees of an example: log-probs, those of the reference, lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

from tddpo_jax.losses.elementary import PerPair, PerResponse, PerResponseAndTail, Scalar, maximum


class Tails(NamedTuple):
    """Log-probs of the tokens beyond the length of a pair's shorter response, [P] nats each.

    They are parts of the log-probs of the whole responses, and 0 for the shorter one.
    """

    chosen: PerPair
    rejected: PerPair
    ref_chosen: PerPair
    ref_rejected: PerPair


class PairLogps(NamedTuple):
    """What a loss sees of P preference pairs; every field is float [P].

    Log-probabilities are sums over response tokens in nats, lengths are the numbers of those
    tokens, and kl_* is the exact KL(p_theta || p0) over the vocabulary, summed over the same
    positions (zeros unless a loss asks for it, as `td_dpo` does with `kl="full"`).

    Where an example has one response, that is the chosen one, and every field of the rejected one
    is None. Only a loss that reads the chosen response alone meets such examples.
    """

    logp_chosen: PerPair
    logp_rejected: PerPair
    ref_logp_chosen: PerPair
    ref_logp_rejected: PerPair
    length_chosen: PerPair
    length_rejected: PerPair
    kl_chosen: PerPair
    kl_rejected: PerPair
    tails: Tails | None = None  # None unless a cell of the experiment has loss.ld_alpha below 1


# Of the chosen and of the rejected responses; None where there is no rejected one.
Rewards = tuple[PerPair, PerPair | None]


def pair_logps(
    logps: PerResponseAndTail,
    ref_logps: PerResponseAndTail,
    lengths: PerResponse,
    kls: PerResponse,
) -> PairLogps:
    """The fields from arrays whose last axis is the responses: one, or (chosen, rejected).

    Log-probs, those of the policy and of the reference, may have those of the two tails behind.
    """
    responses = lengths.shape[-1]
    assert responses in (1, 2), f"no loss reads {responses} responses"
    columns: list[Any] = []
    for values in (logps, ref_logps, lengths, kls):
        columns += [values[..., 0], values[..., 1] if responses == 2 else None]
    pairs = PairLogps(*columns)
    if logps.shape[-1] == responses:
        return pairs
    tails = [values[..., place] for values in (logps, ref_logps) for place in (2, 3)]
    return pairs._replace(tails=Tails(*tails))


def decoupled(pairs: PairLogps, *, ld_alpha: Scalar) -> PairLogps:
    """The pairs with the weight `ld_alpha` on the tails of their log-probs.

    Pairs without tails stay as they are. At 1 nothing changes, and at 0 only as many tokens count
    as the shorter response has.

    References:
        Liu et al., "Length Desensitization in Direct Preference Optimization" (2024), arXiv
        2409.06411, eq. 10.
    """
    if pairs.tails is None:
        return pairs
    less, tails = 1 - ld_alpha, pairs.tails
    return pairs._replace(
        logp_chosen=pairs.logp_chosen - less * tails.chosen,
        logp_rejected=pairs.logp_rejected - less * tails.rejected,
        ref_logp_chosen=pairs.ref_logp_chosen - less * tails.ref_chosen,
        ref_logp_rejected=pairs.ref_logp_rejected - less * tails.ref_rejected,
        tails=None,
    )


def chosen_log_ratio(pairs: PairLogps) -> PerPair:
    """s_w, the log-ratio of the chosen response, [P] nats."""
    return pairs.logp_chosen - pairs.ref_logp_chosen


def log_ratios(pairs: PairLogps) -> tuple[PerPair, PerPair]:
    """s_w and s_l, the log-ratios of the chosen and of the rejected responses, each [P] nats."""
    return chosen_log_ratio(pairs), pairs.logp_rejected - pairs.ref_logp_rejected


def scaled_log_ratios(pairs: PairLogps, *, beta: Scalar) -> tuple[PerPair, PerPair]:
    """beta * s_w and beta * s_l: the rewards that DPO implies."""
    chosen, rejected = log_ratios(pairs)
    return beta * chosen, beta * rejected


def scaled_margin(pairs: PairLogps, beta: Scalar) -> PerPair:
    """x = beta * (s_w - s_l)."""
    chosen, rejected = log_ratios(pairs)
    return beta * (chosen - rejected)


# The forms of a margin, see `margin_terms`.
MARGINS = ("policy", "log_ratio", "length_normalized")


def margin_terms(pairs: PairLogps, form: str) -> tuple[PerPair, PerPair]:
    """The two numbers of each pair whose difference is its margin.

    Args:
        pairs: P pairs.
        form: `policy`: logp, without the reference; `log_ratio`: s = logp - ref_logp;
            `length_normalized`: logp / |y|, per token and without the reference.

    Raises:
        ValueError: there is no such form.
    """
    if form == "policy":
        return pairs.logp_chosen, pairs.logp_rejected
    if form == "log_ratio":
        return log_ratios(pairs)
    if form == "length_normalized":
        return per_token(pairs.logp_chosen, pairs.logp_rejected, pairs)
    raise ValueError(f"margin: must be one of {', '.join(MARGINS)}, got {form!r}")


def per_token(chosen: PerPair, rejected: PerPair, pairs: PairLogps) -> tuple[PerPair, PerPair]:
    """Both numbers of each pair, divided by the lengths of its responses."""
    # At least one token: an unused slot of a batch has length 0 and must not become 0 / 0.
    return (
        chosen / maximum(pairs.length_chosen, 1),
        rejected / maximum(pairs.length_rejected, 1),
    )
