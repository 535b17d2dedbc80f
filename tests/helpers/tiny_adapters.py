"""Puts random adapters on tiny models, as if they had been trained."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from tddpo_jax.models.decoder import Decoder, adaptable_layers
from tddpo_jax.models.linear import Adapter, LoraParam
from tddpo_jax.models.tensor_table import adaptable_parameters


def adapted(
    base: Decoder,
    seed: int,
    *,
    rank: int,
    alpha: float = 8.0,
    dropout: float = 0.0,
    targets: tuple[str, ...] | None = None,
) -> Decoder:
    """The base with an adapter whose factors are both random; experts only if they are named."""
    model = nnx.clone(base)
    rng = np.random.default_rng(seed)
    norm: Any = model.norm
    place = norm.weight[...].sharding
    weights = {weight.module: weight for weight in adaptable_parameters(base.config.parameters)}
    for path, linear in adaptable_layers(model).items():
        is_expert = weights[path].tensor.kind == "experts"
        if is_expert if targets is None else weights[path].name not in targets:
            continue
        depth = 2 if is_expert else 1
        shape = linear.weight.shape
        stacked, outputs, inputs = shape[:depth], shape[depth:-1], shape[-1]
        make = functools.partial(Adapter, inputs, outputs[-1], rank, alpha / rank, dropout)
        adapter = jax.eval_shape(make, jax.random.key(0))
        for factor, sizes in {"a": (rank, inputs), "b": (*outputs, rank)}.items():
            values = (rng.normal(size=(*stacked, *sizes)) * 0.3).astype(np.float32)
            setattr(adapter, factor, LoraParam(jax.device_put(values, place)))
        linear.adapter = adapter
    return model
