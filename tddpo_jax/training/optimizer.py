"""AdamW, whose rate and weight decay are arguments of the step, and the rate's schedule.

References:
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import optax

from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.tensor_table import adaptable_parameters, adapter_paths
from tddpo_jax.placement.shardings import path_name


def _decayed(params: Any, model: DecoderConfig) -> Any:
    """True for every parameter that gets weight decay.

    Norms and biases get none: they are few, and decay would pull the norms' weights to zero. A
    router's bias has the kind `router`, so no vector gets any.

    Raises:
        KeyError: a parameter is neither in the model's table nor part of an adapter.
    """
    decayed = {
        each.path: each.tensor.kind not in ("norm", "bias") and len(each.shape) > 1
        for each in model.parameters
    }
    for weight in adaptable_parameters(model.parameters):
        decayed |= dict.fromkeys(adapter_paths(weight), True)
    return jax.tree_util.tree_map_with_path(lambda path, _: decayed[path_name(path)], params)


def make_optimizer(
    config: TrainConfig, model: DecoderConfig
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam and decoupled weight decay.

    The caller multiplies the updates by -learning rate. `update` takes `weight_decay`, which may be
    traced; its default is the configuration's.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps),
        _weight_decay(config.weight_decay, model),
    )


def _weight_decay(default: float, model: DecoderConfig) -> optax.GradientTransformationExtraArgs:
    decayed = functools.partial(_decayed, model=model)

    # Optax gives every part of a chain all extra arguments.
    def update(
        changes: Any, state: Any, params: Any, *, weight_decay: Any = default, **_: Any
    ) -> tuple[Any, Any]:
        return optax.add_decayed_weights(weight_decay, decayed).update(changes, state, params)

    init = optax.add_decayed_weights(default, decayed).init
    return optax.GradientTransformationExtraArgs(init, update)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The learning rate of one step; it is 0 only if `config.learning_rate` is.

    The warm-up rises linearly and reaches `config.learning_rate` at its last step. Cosine and
    linear decay would reach 0 one step after the last.

    Args:
        config: learning_rate, schedule, warmup_ratio.
        step: number of the step, 0 <= step < total_steps.
        total_steps: number of steps of the run.
    """
    warmup = config.warmup_steps(total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return config.learning_rate * factor[config.schedule]
