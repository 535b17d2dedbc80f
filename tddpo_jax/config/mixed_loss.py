"""Mixtures: weighted sums of losses of ours, named `dpo+sft`, with their weights in `loss.mix`.

`loss.mix: {dpo: 1, sft: 0.2}` alone names the mixture too. Its row in `LOSSES` is made when its
name is read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tddpo_jax.config.own_loss import is_own
from tddpo_jax.config.spelling import did_you_mean
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES, shared_losses
from tddpo_jax.losses.loss import Loss
from tddpo_jax.losses.weighted_sum import JOINT, is_mixture, mixture


def parts_of(name: str) -> list[str]:
    """The names of the losses of a mixture; none if it is no mixture."""
    return name.split(JOINT) if is_mixture(name) else []


def load_mixture(name: str) -> str:
    """Makes the row of a mixture, and returns its name in `LOSSES`.

    Raises:
        UserError: a part is no loss of ours, or is named twice.
    """
    known, parts = shared_losses(), parts_of(name)
    for part in parts:
        if part not in known:
            meant = did_you_mean(part, known)
            raise UserError(f"loss.name: {name}: there is no loss {part!r}{meant}")
        if parts.count(part) > 1:
            raise UserError(f"loss.name: {name}: names {part} twice; give it a weight in loss.mix")
    LOSSES[name] = _row(tuple(known[part] for part in parts))
    return name


# The cache gives equal mixtures one row, so what was compiled for it serves again.
@functools.cache
def _row(parts: tuple[Loss, ...]) -> Loss:
    return mixture(parts)


def name_of_weights(weights: Any) -> str:
    """The name of the mixture that `loss.mix` stands for where no loss is named.

    Raises:
        UserError: it is not a group of weights of two or more losses of ours.
    """
    if not isinstance(weights, Mapping):
        raise UserError(f"loss.mix: must be a group of weights, got {weights!r}")
    for name in weights:
        if is_own(name):
            raise UserError(
                f"loss.mix: {name} is a loss of your own; add the other losses in its function"
            )
    if len(weights) < 2:
        raise UserError(f"loss.mix: must weigh two losses or more, got {dict(weights)}")
    return JOINT.join(map(str, weights))


def with_weights(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a mixture with all its weights; one that is not given is 1.

    Args:
        name: the name of the mixture in `LOSSES`.
        given: the section `loss` of the settings.
    """
    weights = given.get("mix", {})
    if not isinstance(weights, Mapping):
        raise UserError(f"loss.mix: must be a group of weights, got {weights!r}")
    defaults = {part: LOSSES[name].settings[part].default for part in parts_of(name)}
    return {**given, "name": name, "mix": {**defaults, **weights}}
