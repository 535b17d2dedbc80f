"""Pairs and settings for the tests of losses, and values with gradients of all losses at once."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from places import HELPERS

from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.objective import Objective, objective_of
from tddpo_jax.losses.pair_logps import PairLogps


class Numbers(NamedTuple):
    """All numeric settings of all losses."""

    beta: float = 0.7
    tau: float = 1.3
    label_smoothing: float = 0.1
    discopop_tau: float = 0.45
    simpo_gamma: float = 0.6
    tokens_per_pair: float = 8.0
    ld_alpha: float = 0.3


def only(name: str, margin: str = "policy", kl: str = "k2") -> Objective:
    """The objective of one loss."""
    return objective_of([{"name": name, "margin": margin, "kl": kl}])


MARGINS = ("policy", "log_ratio", "length_normalized")
VARIANTS = [only("td_dpo", *forms) for forms in itertools.product(MARGINS, ("k2", "full"))]
SINGLES = (*VARIANTS, *(only(name) for name in LOSSES if name != "td_dpo"))
ALL = Objective(tuple(term for one in SINGLES for term in one.terms))
SCALARS = Numbers()


def make_pairs(
    chosen: Any,
    rejected: Any,
    ref_chosen: Any,
    ref_rejected: Any,
    *,
    lengths: Any = None,
    kl: Any = (0.0, 0.0),
) -> PairLogps:
    """Pairs with one token in each response and no KL, unless these are given."""
    shape = np.shape(chosen)
    lengths = (np.ones(shape), np.ones(shape)) if lengths is None else lengths
    kl = [np.broadcast_to(value, shape) for value in kl]
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, *lengths, *kl)


def margin_pairs(s: Any) -> PairLogps:
    """Pairs whose chosen log-ratio is s. All else is zero, and each response has one token."""
    s = np.asarray(s, np.float64)
    return make_pairs(s, np.zeros_like(s), np.zeros_like(s), np.zeros_like(s))


def random_pairs() -> PairLogps:
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 40, (2, 7)).astype(np.float64)
    logps, log_ratios = -rng.uniform(5, 9, (2, 7)), rng.normal(0, 2.5, (2, 7))
    return make_pairs(*logps, *(logps - log_ratios), lengths=lengths, kl=rng.uniform(0, 3, (2, 7)))


def golden_pairs() -> PairLogps:
    """The six pairs of TRL's numbers."""
    inputs = GOLDEN["inputs"]
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    lengths = [np.array(inputs[name], float) for name in ("chosen_len", "rejected_len")]
    return make_pairs(*(np.array(inputs[name]) for name in names), lengths=lengths)


GOLDEN = json.loads((HELPERS.parent / "losses" / "golden_losses.json").read_text())
PAIRS = random_pairs()
S_W = PAIRS.logp_chosen - PAIRS.ref_logp_chosen
S_L = PAIRS.logp_rejected - PAIRS.ref_logp_rejected
X = SCALARS.beta * (S_W - S_L)


def in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda value: np.asarray(value, np.float32), tree)


def total(
    pairs: PairLogps, objective: Objective, which: int, scalars: Numbers | dict[str, Any]
) -> tuple[Array, Array]:
    """The sum of the losses, and the loss of each pair."""
    named = scalars._asdict() if isinstance(scalars, Numbers) else scalars
    values = objective.values(which, pairs, named)
    return values.sum(), values


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(
    losses: tuple[Objective, ...], pairs: PairLogps, scalars: Numbers | dict[str, Any]
) -> list[Any]:
    gradient = jax.value_and_grad(total, has_aux=True)
    return [gradient(pairs, loss, 0, scalars) for loss in losses]


def evaluate(
    loss: Objective,
    pairs: PairLogps,
    scalars: Numbers | dict[str, Any] = SCALARS,
    dtype: type = np.float64,
    among: tuple[Objective, ...] = SINGLES,
) -> tuple[np.ndarray, PairLogps]:
    """Values [P] and the gradient of their sum.

    Pairs do not affect each other, so the gradient is that of each pair's own value. The losses are
    compiled together, because compiling them one by one would take most of the tests' time.
    """
    with jax.enable_x64(dtype == np.float64):
        inputs = jax.tree.map(lambda value: np.asarray(value, dtype), (pairs, scalars))
        (_, values), gradients = value_and_gradient(among, *inputs)[among.index(loss)]
        assert values.dtype == dtype
    return np.asarray(values), jax.tree.map(np.asarray, gradients)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softplus(x: Any) -> Any:
    return np.logaddexp(x, 0)


def assert_slopes(loss: Objective, chosen: Any, rejected: Any) -> None:
    """Checks the slopes of a loss with respect to logp_chosen and logp_rejected.

    If a loss depends on log-ratios only, its slopes with respect to the reference are opposite.
    """
    _, gradients = evaluate(loss, PAIRS)
    np.testing.assert_allclose(gradients.logp_chosen, chosen, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(gradients.logp_rejected, rejected, rtol=1e-11, atol=1e-14)


def flip(pairs: PairLogps) -> PairLogps:
    """The pairs with chosen and rejected exchanged."""
    return make_pairs(*(pairs[field] for field in (1, 0, 3, 2)))


# The last pair is an empty place of a batch, with zeros only, also as lengths.
CORNERS = np.array(list(itertools.product([0.0, -1e4], repeat=4))).T
EXTREME_PAIRS: PairLogps = jax.tree.map(
    lambda field: np.append(field, 0.0),
    make_pairs(*CORNERS, lengths=np.full((2, 16), 13.0), kl=(1e4, 0.0)),
)
