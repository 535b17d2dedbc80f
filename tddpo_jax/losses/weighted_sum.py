"""Weighted sums of losses, as rows like all others: `dpo+sft`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tddpo_jax.losses.elementary import PerPair
from tddpo_jax.losses.loss import Loss, Setting, keywords_of
from tddpo_jax.losses.pair_logps import PairLogps

JOINT = "+"


def is_mixture(name: object) -> bool:
    """Whether this is the name of a weighted sum of losses of ours, such as `dpo+sft`."""
    return isinstance(name, str) and JOINT in name and ":" not in name


def mixture(parts: Sequence[Loss]) -> Loss:
    """The row of the sum of `weight * loss` over some losses, all from the same log-probs.

    Each weight is a setting with the name of its loss. The losses share all other settings of one
    name, such as beta. Rewards and gradient weights are those of the first loss that compares two
    responses.

    Args:
        parts: two or more losses of different names.

    References:
        With `dpo` and `sft`: Pang et al., "Iterative Reasoning Preference Optimization" (2024),
        arXiv 2404.19733, eq. 1. With `dpo`, `bco_pair` and `sft`: Wang et al., "Enhancing the
        Reasoning Ability of Multimodal LLMs via Mixed Preference Optimization" (2024), arXiv
        2411.10442, eq. 4.
    """
    weights = {part.name: _weight(part.name) for part in parts}
    settings = {name: setting for part in parts for name, setting in part.settings.items()}
    preference = next((part for part in parts if part.responses == 2), parts[0])

    def weighted_sum(pairs: PairLogps, **given: Any) -> PerPair:
        first, *others = (given[part.name] * part.values(pairs, given) for part in parts)
        return sum(others, start=first)

    facts = dict.fromkeys(name for part in parts for name in keywords_of(part.function))
    names = {**settings, **facts}  # with `ld_alpha`, which each part reads or not
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in (*names, *weights)
    ]
    first = inspect.Parameter("pairs", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    weighted_sum.__signature__ = inspect.Signature([first, *keywords])  # type: ignore[attr-defined]
    weighted_sum.__name__ = JOINT.join(weights)
    weighted_sum.__doc__ = f"The weighted sum of {' and '.join(weights)}."
    return Loss(
        weighted_sum,
        {**settings, **weights},
        rewards=preference.rewards,
        logit=preference.logit,
        needs_beta=any(part.needs_beta for part in parts if "beta" in part.settings),
        exact_kl=lambda settings: any(part.exact_kl(settings) for part in parts),
        responses=max(part.responses for part in parts),
    )


def _weight(name: str) -> Setting:
    return Setting(default=1.0, at_least=0.0, help=f"weight of {name} in a mixture")
