"""Puts random adapters on tiny models, as if they had been trained."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from tddpo_jax.models.decoder import Decoder, linear_layers
from tddpo_jax.models.linear import Adapter, LoraParam


def adapted(
    base: Decoder,
    seed: int,
    *,
    rank: int,
    alpha: float = 8.0,
    dropout: float = 0.0,
    targets: tuple[str, ...] | None = None,
) -> Decoder:
    """The base with an adapter whose factors are both random."""
    model = nnx.clone(base)
    rng = np.random.default_rng(seed)
    norm: Any = model.norm
    place = norm.weight[...].sharding
    for path, linear in linear_layers(model).items():
        if targets is not None and path.rpartition(".")[2] not in targets:
            continue
        layers, outputs, inputs = linear.weight.shape
        make = functools.partial(Adapter, inputs, outputs, rank, alpha / rank, dropout)
        adapter = jax.eval_shape(make, jax.random.key(0))
        for factor, shape in {"a": (rank, inputs), "b": (outputs, rank)}.items():
            values = (rng.normal(size=(layers, *shape)) * 0.3).astype(np.float32)
            setattr(adapter, factor, LoraParam(jax.device_put(values, place)))
        linear.adapter = adapter
    return model
