"""Losses as a user writes them: one that is right, and one for every mistake."""

from __future__ import annotations

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.losses.pair_logps import PairLogps, decoupled, scaled_margin

kept: list[Any] = []
calls = 0


def my_dpo(pairs: PairLogps, *, beta: Any, margin_scale: Any = 1.0) -> Any:
    """DPO whose margin is scaled once more."""
    return jax.nn.softplus(-margin_scale * scaled_margin(pairs, beta))


def needs_gate(pairs: PairLogps, *, gate: Any, label_smoothing: Any = 0.25) -> Any:
    """A loss without beta, whose gate has no default."""
    return gate * (pairs.logp_rejected - pairs.logp_chosen) + label_smoothing


def with_kl(pairs: PairLogps, *, beta: Any) -> Any:
    """A margin and the exact KL."""
    return beta * pairs.kl_chosen - scaled_margin(pairs, 1.0)


def weighs_tails(pairs: PairLogps, *, beta: Any, ld_alpha: Any = 0.5) -> Any:
    """DPO that weighs tails itself."""
    return jax.nn.softplus(-scaled_margin(decoupled(pairs, ld_alpha=ld_alpha), beta))


# ---- mistakes ------------------------------------------------------------------------------------


def keeps_a_tracer(pairs: PairLogps, *, beta: Any) -> Any:
    kept.append(pairs.logp_chosen)
    return -scaled_margin(pairs, beta)


def counts_its_calls(pairs: PairLogps, *, beta: Any) -> Any:
    global calls
    calls += 1
    return calls - scaled_margin(pairs, beta)


def draws_at_random(pairs: PairLogps, *, beta: Any) -> Any:
    return -random.random() * scaled_margin(pairs, beta)


def gives_a_mean(pairs: PairLogps, *, beta: Any) -> Any:
    return -jnp.mean(scaled_margin(pairs, beta))


def gives_nothing(pairs: PairLogps, *, beta: Any) -> Any:
    return None


def mixes_pairs(pairs: PairLogps, *, beta: Any) -> Any:
    margin = scaled_margin(pairs, beta)
    return jnp.mean(margin) - margin


def starts_infinite(pairs: PairLogps, *, beta: Any) -> Any:
    return 1 / scaled_margin(pairs, beta)


def starts_without_a_slope(pairs: PairLogps, *, beta: Any) -> Any:
    return jnp.sqrt(jnp.abs(scaled_margin(pairs, beta)))


def has_steps(pairs: PairLogps, *, beta: Any) -> Any:
    return -jnp.sign(scaled_margin(pairs, beta))


def leaves_jax(pairs: PairLogps, *, beta: Any) -> Any:
    return np.exp(-np.asarray(scaled_margin(pairs, beta)))


def branches(pairs: PairLogps, *, beta: Any) -> Any:
    return (-1 if beta > 0.01 else 1) * scaled_margin(pairs, beta)


def misspells(pairs: PairLogps, *, beta: Any) -> Any:
    return pairs.logp  # type: ignore[attr-defined]


def gives_up(pairs: PairLogps, *, beta: Any) -> Any:
    raise SystemExit(3)


def takes_anything(pairs: PairLogps, **kwargs: Any) -> Any:
    return -scaled_margin(pairs, kwargs["beta"])


def takes_a_place(pairs: PairLogps, beta: Any) -> Any:
    return -scaled_margin(pairs, beta)


def takes_a_switch(pairs: PairLogps, *, beta: Any, on: bool = True) -> Any:
    return -scaled_margin(pairs, beta)


def dpo(pairs: PairLogps, *, beta: Any) -> Any:
    return -scaled_margin(pairs, beta)


not_a_function = 3
another_name = my_dpo
