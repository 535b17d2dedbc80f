"""The section `loss` of the settings.

The rows of `losses.catalogue.LOSSES` declare the settings of the losses, so the section is made
from them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from tddpo_jax.config.mixed_loss import load_mixture, name_of_weights, parts_of, with_weights
from tddpo_jax.config.own_function import function_name
from tddpo_jax.config.own_loss import GROUPS, is_own, load_loss, new_settings, with_defaults
from tddpo_jax.config.section import Finite, NonNegative, Section
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES, all_settings, readers, shared_losses
from tddpo_jax.losses.loss import Loss, Setting
from tddpo_jax.losses.weighted_sum import JOINT, is_mixture


class LossConfig(Section):
    """The loss and its settings.

    `loss_section` adds the settings of all losses.
    """

    name: str = Field(
        DEFAULT_LOSS,
        description="name of the loss, dpo+sft for a weighted sum of losses, or "
        "path/to/file.py:function for your own (short: --loss)",
    )
    mix: dict[str, NonNegative] = Field(
        default_factory=dict,
        description="weights of the losses of a sum, as dpo=1 sft=0.2; a weight that is not given "
        "is 1",
    )
    set: dict[str, Finite] = Field(
        default_factory=dict, description="numbers of your own loss, as margin_scale=2.0 gate=0.1"
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The value of a setting, such as `beta`."""

    @property
    def settings(self) -> dict[str, Any]:
        """The name, and the value of every setting by the keyword of the loss's function."""
        plain = {name: value for name, value in self if name not in GROUPS}
        return {**plain, **self.set, **self.mix}

    @property
    def read(self) -> Set[str]:
        """The fields that the loss reads."""
        return {"name", *GROUPS, *LOSSES[self.name].settings}

    @property
    def title(self) -> str:
        """The name of the loss's function: what cells, tables and reports call the loss."""
        return function_name(self.name)

    @property
    def exact_kl(self) -> bool:
        """Whether the loss reads the exact KL to the reference."""
        return LOSSES[self.name].exact_kl(self.settings)

    @pydantic.model_validator(mode="after")
    def _beta_scales_something(self) -> LossConfig:
        loss = LOSSES[self.name]
        if "beta" in loss.settings and loss.needs_beta and self.beta == 0:
            raise ValueError(f"loss.beta: must be above 0 for {self.name}, got 0")
        return self

    @pydantic.model_validator(mode="after")
    def _weights_are_those_of_the_mixture(self) -> LossConfig:
        parts = parts_of(self.name)
        for name in self.mix:
            if name not in parts:
                whole = JOINT.join(dict.fromkeys([self.title, *self.mix]))
                raise ValueError(
                    f"loss.mix.{name}: {self.title} is no sum of losses with a weight for {name}; "
                    f"name the sum, as in --loss {whole}"
                )
        if parts and not any(self.mix.values()):
            raise ValueError(f"loss.mix: every weight of {self.name} is 0")
        return self

    @pydantic.model_validator(mode="after")
    def _set_is_what_the_loss_reads(self) -> LossConfig:
        new = new_settings(self.name)
        for name in self.set:
            if name not in new:
                known = f"it has {', '.join(new)}" if new else "it has none"
                raise ValueError(
                    f"loss.set.{name}: {function_name(self.name)} has no number of its own with "
                    f"this name; {known}"
                )
        for name in new:
            if name not in self.set:
                raise ValueError(
                    f"loss.set.{name}: {function_name(self.name)} has no default for it; "
                    f"give --loss.set {name}=NUMBER"
                )
        return self


def loss_section(own: str | None = None) -> type[LossConfig]:
    """The section `loss` of a configuration, with a field for every setting in `LOSSES` now.

    Args:
        own: the name in `LOSSES` of a loss of one's own or of a mixture, which the section then
            accepts instead.
    """
    return _loss_section(tuple(shared_losses().items()), own)


# The cache gives equal losses one class. Sections of two classes would never be equal.
@functools.cache
def _loss_section(losses: tuple[tuple[str, Loss], ...], own: str | None) -> type[LossConfig]:
    allowed = [name for name, _ in losses] if own is None else [own]
    names: Any = Literal[tuple(allowed)]
    fields: dict[str, Any] = {"name": (names, LossConfig.model_fields["name"])}
    for name, setting in all_settings().items():
        description = f"{setting.help}; read by {readers(name)}"
        fields[name] = (_type_of(setting), Field(setting.default, description=description))
    return pydantic.create_model("LossConfig", __base__=LossConfig, __module__=__name__, **fields)


def _type_of(setting: Setting) -> Any:
    if setting.is_text:
        return Literal[setting.choices]
    bounds = Field(
        gt=setting.above,
        ge=setting.at_least,
        lt=setting.below,
        le=setting.at_most,
        allow_inf_nan=False,
    )
    return Annotated[float, bounds]


def loss_of(value: Any) -> LossConfig:
    """The section from settings, as a file or another process gives them."""
    if isinstance(value, LossConfig):
        return value
    if not isinstance(value, Mapping):
        return loss_section().model_validate(value)
    if value.get("mix") and "name" not in value:
        value = {**value, "name": name_of_weights(value["mix"])}
    if is_mixture(value.get("name")):
        mixed = load_mixture(value["name"])
        return loss_section(mixed).model_validate(with_weights(mixed, value))
    if not is_own(value.get("name")):
        return loss_section().model_validate(value)
    # `cells.expand` has loaded it, unless these are the settings of a run or of another process.
    name = value["name"] if value["name"] in LOSSES else load_loss(value["name"])
    return loss_section(name).model_validate({**with_defaults(name, value), "name": name})
