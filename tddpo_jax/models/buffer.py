"""Numbers of a model that are no parameters."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array
from qwix import QArray

Model = TypeVar("Model", bound=nnx.Module)


class Buffer(nnx.Variable):
    """Numbers that are never trained and never rounded: they stay float32 in every computation.

    They choose among experts or keys. A rounded one would choose others.
    """


def with_weights_in(model: Model, dtype: Any) -> Model:
    """The model with all weights in this dtype. Quantised weights and buffers stay as they are."""

    def cast(weight: Array | QArray) -> Array | QArray:
        return weight if isinstance(weight, QArray) else weight.astype(dtype)

    graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(cast, params, is_leaf=lambda weight: isinstance(weight, QArray))
    return nnx.merge(graphdef, params, *rest)
