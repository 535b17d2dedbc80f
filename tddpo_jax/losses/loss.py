"""What a loss is: a function, its settings, and how it is averaged and reported, as one row."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tddpo_jax.losses.elementary import PerPair
from tddpo_jax.losses.pair_logps import PairLogps, Rewards, decoupled, scaled_log_ratios


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of a loss: `loss.<name>` in a file, `--loss.<name>` on a command line.

    A number is an argument of the compiled step, so another value does not compile it again. A text
    is one of `choices` and is compiled into the step.

    Attributes:
        default: the value where none is given; None: one must be given.
        help: one line for `--help`.
        above: a number must be greater than this.
        at_least: a number must be this or greater.
        below: a number must be less than this.
        at_most: a number must be this or less.
        choices: the texts that are allowed; empty for a number.
    """

    default: float | str | None
    help: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the value is one of `choices`, and no number."""
        return bool(self.choices)

    def __post_init__(self) -> None:
        if self.choices and self.default not in self.choices:
            raise ValueError(f"setting: its default {self.default!r} is not among its choices")
        if not self.choices and isinstance(self.default, str):
            raise ValueError(f"setting: its default {self.default!r} is a text without choices")


# Keywords of a loss's function that are no settings but facts of the batch. `tokens_per_pair`: the
# mean number of tokens of its chosen responses. A loss is a mean over tokens if it divides by it.
BATCH_FACTS = ("tokens_per_pair",)
# The setting of every loss of two responses that weighs their longer parts less.
DECOUPLING = "ld_alpha"


# eq=False: a row equals itself alone, and so can be a static argument of a compiled function.
@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss on preference pairs, as everything else in this project knows it.

    Attributes:
        function: takes pairs and, by keyword, its settings; gives one value per pair, `[P]`, whose
            mean is the loss of a batch. Its name is the loss's name, and the first line of its
            docstring introduces it in reports.
        settings: what each keyword of `function` is, but for `BATCH_FACTS`. If `ld_alpha` is among
            them and `function` does not take it, `function` sees `decoupled` pairs. Losses may
            share a setting: the same name then has the same `Setting`.
        rewards: takes pairs and, by keyword, any of the settings; gives the implicit rewards of
            the chosen and of the rejected responses, each `[P]`. They are metrics.
        needs_beta: whether beta = 0 is refused, because it leaves nothing to learn.
        exact_kl: given the settings, says whether `function` reads `pairs.kl_*`. They cost a pass
            of the reference model at every step, and are zeros otherwise.
        logit: takes pairs and, by keyword, any of the settings; gives the number z of each pair,
            `[P]`, of a loss with the term -log sigmoid(z). Its gradient has the weight sigmoid(-z),
            so a metric tells how many weights are saturated. None for losses of other forms.
        responses: how many responses of an example the loss reads: both, or the chosen one alone.
        source: the text of the user's file that the loss comes from; empty for a loss of ours.

    Raises:
        ValueError: the settings are not the keywords of the function, or lack one of `rewards`.
    """

    function: Callable[..., PerPair]
    settings: Mapping[str, Setting]
    rewards: Callable[..., Rewards] = scaled_log_ratios
    needs_beta: bool = True
    exact_kl: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    logit: Callable[..., PerPair] | None = None
    responses: Literal[1, 2] = 2
    source: str = ""

    def __post_init__(self) -> None:
        keywords = [name for name in keywords_of(self.function) if name not in BATCH_FACTS]
        if set(keywords) | {DECOUPLING} != set(self.settings) | {DECOUPLING}:
            raise ValueError(
                f"loss {self.name}: its settings are {', '.join(self.settings) or 'none'}, the "
                f"keywords of its function {', '.join(keywords) or 'none'}"
            )
        for name in (*keywords_of(self.rewards), *(keywords_of(self.logit) if self.logit else ())):
            if name not in self.settings:
                raise ValueError(
                    f"loss {self.name}: its rewards or its logit read {name}, which is none of its "
                    "settings"
                )

    @property
    def name(self) -> str:
        return self.function.__name__

    def texts(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """The loss's settings that are texts; one that is not given has its default."""
        return {
            name: settings.get(name, setting.default)
            for name, setting in self.settings.items()
            if setting.is_text
        }

    def values(self, pairs: PairLogps, settings: Mapping[str, Any]) -> PerPair:
        """The loss of each pair, `[P]`; it takes its own of the settings and `BATCH_FACTS`."""
        keywords = keywords_of(self.function)
        seen = pairs if DECOUPLING in keywords else self._seen(pairs, settings)
        return self.function(seen, **{name: settings[name] for name in keywords})

    def rewards_of(self, pairs: PairLogps, settings: Mapping[str, Any]) -> Rewards:
        """The implicit rewards of the chosen and of the rejected responses, each `[P]`.

        A prompt with one response has no rejected one: None stands in its place.
        """
        seen = self._seen(pairs, settings)
        return self.rewards(seen, **{name: settings[name] for name in keywords_of(self.rewards)})

    def logits_of(self, pairs: PairLogps, settings: Mapping[str, Any]) -> PerPair:
        """The number of each pair whose sigmoid weighs its gradient, `[P]`; zeros without one."""
        if self.logit is None:
            return 0 * pairs.logp_chosen
        seen = self._seen(pairs, settings)
        return self.logit(seen, **{name: settings[name] for name in keywords_of(self.logit)})

    def _seen(self, pairs: PairLogps, settings: Mapping[str, Any]) -> PairLogps:
        if DECOUPLING not in self.settings:
            return pairs
        return decoupled(pairs, ld_alpha=settings.get(DECOUPLING, 1.0))


@functools.cache
def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the keywords of a function of pairs."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)


# The settings that nearly all losses of two responses share.
LD_ALPHA = Setting(
    default=1.0,
    at_least=0.0,
    at_most=1.0,
    help="LD-DPO's weight of the tokens beyond the length of the pair's shorter response",
)
BETA = Setting(
    default=0.05,
    at_least=0.0,
    help="weight of the KL term if the loss has one, else scale of the log-ratios",
)
ON_PAIRS = {"beta": BETA, "ld_alpha": LD_ALPHA}
