"""Which parameters of a model are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.models.architecture import DecoderConfig
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
    if train.router == "trained" or not routers:
        return nnx.Param

    def is_trained(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and ".".join(map(str, path)) not in routers

    return is_trained
