"""Adapters with random factors on tiny models, as if they had been trained."""

from __future__ import annotations

import jax
import numpy as np
import tiny

from tddpo_jax.config import LoraConfig
from tddpo_jax.lora import add_adapters
from tddpo_jax.model import LINEAR_NAMES, Llama, LoraParam
from tddpo_jax.row_adapters import copied


def adapted(base: Llama, seed: int, **settings) -> Llama:
    """The base with an adapter of `LoraConfig(**settings)`, none of whose factors is zero."""
    model = copied(base)
    add_adapters(model, LoraConfig(**settings), seed, tiny.one_device())
    rng = np.random.default_rng(seed)
    for name in LINEAR_NAMES:
        adapter = getattr(model.layers, name).adapter
        if adapter is not None:
            noise = rng.normal(size=adapter.b.shape).astype(np.float32)
            adapter.b = LoraParam(jax.device_put(0.1 * noise, adapter.b[...].sharding))
    return model
