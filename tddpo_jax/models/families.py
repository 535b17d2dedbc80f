"""The model families, by `model_type`."""

from __future__ import annotations

import jax

from tddpo_jax.models.decoder import Llama, count_parameters
from tddpo_jax.models.llama.model import LlamaConfig


def parameters_of(config: LlamaConfig) -> int:
    """Number of weights of a model of this shape."""
    return count_parameters(jax.eval_shape(lambda key: Llama(config, key), jax.random.key(0)))
