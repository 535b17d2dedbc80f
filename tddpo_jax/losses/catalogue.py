"""All losses by name, and how one compiled step serves several of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tddpo_jax.losses.dpo import (
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    nca_pair,
    robust,
    sft,
    sigmoid_norm,
    simpo,
    sppo_hard,
)
from tddpo_jax.losses.pair_logps import (
    PairLogps,
    PerPair,
    Scalar,
    chosen_log_ratio,
    log_ratios,
    per_token,
)
from tddpo_jax.losses.td_dpo import td_dpo


class LossScalars(NamedTuple):
    """Every number a loss may read, each a scalar that a compiled step takes as an argument."""

    beta: Scalar
    tau: Scalar
    label_smoothing: Scalar
    discopop_tau: Scalar
    simpo_gamma: Scalar


class LossSpec(NamedTuple):
    """The static part of a loss: its name and, for `td_dpo`, the forms of its two terms."""

    name: str
    margin: str = "policy"
    kl: str = "k2"


LOSSES: dict[str, Callable[..., PerPair]] = {
    "td_dpo": td_dpo,
    "dpo": dpo,
    "discopop": discopop,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sigmoid_norm": sigmoid_norm,
    "simpo": simpo,
    "sft": sft,
}


def per_pair_loss(
    specs: tuple[LossSpec, ...],
    which: Int[Array, ""] | int,
    pairs: PairLogps,
    scalars: LossScalars,
) -> PerPair:
    """The loss of each pair under `specs[which]`.

    Args:
        specs: the losses of a grid, static.
        which: index into `specs`; may be traced, so that one compiled step serves them all.
            Ignored if there is only one.
        pairs: P pairs.
        scalars: the numbers the losses read; each loss takes its own and ignores the others.

    Returns:
        [P] values in the dtype of `pairs`.
    """
    return _switch([functools.partial(_loss, spec) for spec in specs], which, pairs, scalars)


def rewards(
    specs: tuple[LossSpec, ...],
    which: Int[Array, ""] | int,
    pairs: PairLogps,
    scalars: LossScalars,
) -> tuple[PerPair, PerPair | None]:
    """The implicit rewards of the chosen and of the rejected responses, each [P]; a metric.

    Examples of one response have no rejected one, so None stands there.

    `td_dpo` and `sft`: the log-ratio s itself in nats (in td_dpo beta weighs a penalty and is no
    reward scale). `simpo`: beta * logp / |y|, the reward of its paper. All others: beta * s, as TRL
    reports them, also for the losses that divide by the length.

    Args: as for `per_pair_loss`.
    """
    return _switch([functools.partial(_rewards, spec) for spec in specs], which, pairs, scalars)


def _loss(spec: LossSpec, pairs: PairLogps, scalars: LossScalars) -> PerPair:
    loss = LOSSES[spec.name]
    settings = spec._asdict() | scalars._asdict()
    parameters = inspect.signature(loss).parameters.values()
    return loss(pairs, **{p.name: settings[p.name] for p in parameters if p.kind == p.KEYWORD_ONLY})


def _rewards(
    spec: LossSpec, pairs: PairLogps, scalars: LossScalars
) -> tuple[PerPair, PerPair | None]:
    if pairs.logp_rejected is None:  # which only `sft` reads
        return chosen_log_ratio(pairs), None
    chosen, rejected = log_ratios(pairs)
    if spec.name in ("td_dpo", "sft"):
        return chosen, rejected
    if spec.name == "simpo":
        chosen, rejected = per_token(pairs.logp_chosen, pairs.logp_rejected, pairs)
    return scalars.beta * chosen, scalars.beta * rejected


def _switch(
    functions: Sequence[Callable[[PairLogps, LossScalars], Any]],
    which: Int[Array, ""] | int,
    pairs: PairLogps,
    scalars: LossScalars,
) -> Any:
    """The output of function number `which`, with the scalars in the dtype of the pairs.

    Under `vmap` over `which` all functions run and a select follows. An infinity in one that is not
    selected (`ipo` at beta 0, say) stays out of the gradients: JAX cuts the others' inputs off.
    """
    dtype = pairs.logp_chosen.dtype
    scalars = jax.tree.map(lambda value: jnp.asarray(value, dtype), scalars)
    if len(functions) == 1:
        return functions[0](pairs, scalars)
    return jax.lax.switch(which, functions, pairs, scalars)
