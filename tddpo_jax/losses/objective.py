"""The losses of an experiment as one function, so that one compiled step serves them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.elementary import PerPair, Scalar
from tddpo_jax.losses.loss import DECOUPLING, Loss
from tddpo_jax.losses.metric_names import SATURATED, example_metrics
from tddpo_jax.losses.metrics import pair_metrics, saturation
from tddpo_jax.losses.pair_logps import PairLogps, Rewards

# The place of a loss in an objective.
Which = Int[Array, ""] | int
# The numbers that losses read, by name.
Scalars = Mapping[str, Scalar]


class Term(NamedTuple):
    """A loss with the texts among its settings: what is compiled."""

    loss: Loss
    texts: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses of an experiment, of which each cell minimises one.

    What is compiled depends on the objective alone. Which of its losses it is and the numbers that
    they read are arguments, and may be traced.
    """

    terms: tuple[Term, ...]
    decoupled: bool = False  # whether a cell has ld_alpha below 1; the step then computes the tails

    @property
    def scalar_names(self) -> tuple[str, ...]:
        """The numbers that any of these losses reads, each once."""
        found = {
            name: None
            for loss, _ in self.terms
            for name, setting in loss.settings.items()
            if not setting.is_text
        }
        return tuple(found)

    @property
    def exact_kl(self) -> bool:
        """Whether any of these losses reads the exact KL."""
        return any(loss.exact_kl(dict(texts)) for loss, texts in self.terms)

    @property
    def has_logits(self) -> bool:
        """Whether any of these losses has a gradient weight sigmoid(-z)."""
        return any(loss.logit is not None for loss, _ in self.terms)

    def metric_names(self, responses: int) -> tuple[str, ...]:
        """The names of all metrics of examples with so many responses."""
        return example_metrics(responses) + ((SATURATED,) if self.has_logits else ())

    def which(self, settings: Mapping[str, Any]) -> int:
        """The place of the loss that a cell's settings choose."""
        return self.terms.index(_term(settings))

    def scalars(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """The numbers that a compiled step takes, from a cell's settings.

        A cell lacks the numbers that only another loss of a user's own or another mixture reads; 0
        stands for them.
        """
        return {name: float(settings.get(name, 0.0)) for name in self.scalar_names}

    def values(self, which: Which, pairs: PairLogps, scalars: Scalars) -> PerPair:
        """The loss of each pair.

        Args:
            which: the place of the loss; ignored if there is only one.
            pairs: P pairs.
            scalars: the numbers of `scalar_names`, and `BATCH_FACTS`; each loss takes its own.

        Returns:
            [P] values in the dtype of `pairs`; the loss of a batch is their mean.
        """
        functions = [_with_texts(loss.values, texts) for loss, texts in self.terms]
        return _switch(functions, which, pairs, scalars)

    def rewards(self, which: Which, pairs: PairLogps, scalars: Scalars) -> Rewards:
        """The implicit rewards of the chosen and of the rejected responses, each [P]; a metric.

        Args: as for `values`.
        """
        functions = [_with_texts(loss.rewards_of, texts) for loss, texts in self.terms]
        return _switch(functions, which, pairs, scalars)

    def metrics(self, which: Which, pairs: PairLogps, scalars: Scalars) -> dict[str, PerPair]:
        """Every metric of each example, named as in `metric_names`; arguments as for `values`.

        If a loss has a gradient weight, all have the metric `SATURATED`: 0 for those without.
        """
        rewards = self.rewards(which, pairs, scalars)
        metrics = pair_metrics(pairs, self.values(which, pairs, scalars), rewards)
        if not self.has_logits:
            return metrics
        functions = [_with_texts(loss.logits_of, texts) for loss, texts in self.terms]
        return metrics | saturation(_switch(functions, which, pairs, scalars))


def objective_of(cells: Iterable[Mapping[str, Any]]) -> Objective:
    """The objective of an experiment.

    Args:
        cells: the loss's settings of each cell, `name` among them.
    """
    cells = list(cells)
    terms = dict.fromkeys(map(_term, cells))
    return Objective(tuple(terms), decoupled=any(map(_is_decoupled, cells)))


def _is_decoupled(settings: Mapping[str, Any]) -> bool:
    """Whether a cell weighs tails. `LOSSES` knows whether its loss reads `ld_alpha`."""
    reads = DECOUPLING in LOSSES[settings["name"]].settings
    return reads and settings.get(DECOUPLING, 1.0) != 1.0


def _term(settings: Mapping[str, Any]) -> Term:
    loss = LOSSES[settings["name"]]
    return Term(loss, tuple(loss.texts(settings).items()))


def _with_texts(
    function: Callable[[PairLogps, Mapping[str, Any]], Any], texts: tuple[tuple[str, str], ...]
) -> Callable[[PairLogps, Scalars], Any]:
    return lambda pairs, scalars: function(pairs, {**scalars, **dict(texts)})


def _switch(
    functions: Sequence[Callable[[PairLogps, Scalars], Any]],
    which: Which,
    pairs: PairLogps,
    scalars: Scalars,
) -> Any:
    """The output of function number `which`, with the scalars in the dtype of the pairs.

    Under `vmap` over `which` all functions run and a select follows. An infinity in one that is not
    selected (`ipo` at beta 0, say) stays out of the gradients: JAX cuts the others' inputs off.
    """
    dtype = pairs.logp_chosen.dtype
    scalars = {name: jnp.asarray(value, dtype) for name, value in scalars.items()}
    if len(functions) == 1:
        return functions[0](pairs, scalars)
    return jax.lax.switch(which, functions, pairs, scalars)
