"""All losses by name.

Everything that knows losses reads `LOSSES` when it needs them, never at import: a loss that is
added here by a program or a test is a loss like the others. `config.own_loss` adds those that a
user's file holds, and `config.mixed_loss` those that are weighted sums. Their settings are their
own and no part of these lists.
"""

from __future__ import annotations

from tddpo_jax.losses.dpo import DISCOPOP, DPO, EXO_PAIR, HINGE, ROBUST
from tddpo_jax.losses.loss import Loss, Setting
from tddpo_jax.losses.sft import SFT
from tddpo_jax.losses.td_dpo import TD_DPO
from tddpo_jax.losses.two_responses import IPO, SIGMOID_NORM, SIMPO, WEIGHED_APART
from tddpo_jax.losses.weighted_sum import is_mixture

# In this order help and messages name them.
_OURS = (
    *(TD_DPO, DPO, DISCOPOP, IPO, HINGE, ROBUST, EXO_PAIR),
    *(*WEIGHED_APART, SIGMOID_NORM, SIMPO, SFT),
)
LOSSES: dict[str, Loss] = {loss.name: loss for loss in _OURS}
DEFAULT_LOSS = "td_dpo"


def shared_losses() -> dict[str, Loss]:
    """The losses whose settings have options of their own: neither users' losses nor mixtures."""
    return {name: loss for name, loss in LOSSES.items() if not loss.source and not is_mixture(name)}


def all_settings() -> dict[str, Setting]:
    """Every setting of every shared loss by name, in the order of the losses.

    Raises:
        ValueError: two losses mean different things by one name.
    """
    found: dict[str, Setting] = {}
    for loss in shared_losses().values():
        for name, setting in loss.settings.items():
            if found.setdefault(name, setting) != setting:
                raise ValueError(f"loss {loss.name}: another loss declares {name} differently")
    return found


def readers(setting: str) -> str:
    """The losses that read a setting, in words: `dpo, robust`, or `all but sft`."""
    losses = shared_losses()
    read = [name for name, loss in losses.items() if setting in loss.settings]
    others = [name for name in losses if name not in read]
    if not others:
        return "all losses"
    return ", ".join(read) if len(read) <= len(others) else f"all but {', '.join(others)}"
