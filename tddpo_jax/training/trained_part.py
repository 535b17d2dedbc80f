"""Which parameters of a model are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from tddpo_jax.config.schema import Config, TrainConfig
from tddpo_jax.models.architecture import DecoderConfig, expert_layers
from tddpo_jax.models.linear import LoraParam


def trained_part(train: TrainConfig, model: DecoderConfig) -> type[nnx.Param] | Callable[..., bool]:
    """A filter for `nnx.split`: adapters, or all parameters but those of frozen routers.

    Args:
        train: what is trained, and whether routers are.
        model: the model's shape.
    """
    if train.mode != "full":
        return LoraParam
    routers = {each.path for each in model.parameters if each.tensor.kind == "router"}
    if train.trains_routers or not routers:
        return nnx.Param

    def is_trained(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and ".".join(map(str, path)) not in routers

    return is_trained


def router_loss(config: Config, model: DecoderConfig) -> float:
    """The weight of the loss of routers: 0 if they are frozen or the model has none."""
    has_experts = expert_layers(model) is not None
    return config.train.router_aux if config.train.trains_routers and has_experts else 0.0
