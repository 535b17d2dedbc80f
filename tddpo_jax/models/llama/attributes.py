"""Reads the attributes of a Llama's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.models.rope import RopeScaling

# These attributes would change the mathematics. Only the values that switch them off are accepted.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "pretraining_tp": (1, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
}


def read_config(attributes: Mapping[str, Any], path: str) -> LlamaConfig:
    """The shape of a Llama. `families.read_config` documents the arguments and the errors."""
    for name, understood in REQUIRED_VALUES.items():
        if name in attributes and attributes[name] not in understood:
            raise UserError(f"{path}: {name} = {attributes[name]!r} is not supported")
    known = dict(attributes)
    for name in (*REQUIRED_VALUES, *BOOKKEEPING):
        known.pop(name, None)

    def take(name: str, *default: Any) -> Any:
        if name not in known and not default:
            raise UserError(f"{path}: {name} is missing")
        value = known.pop(name, None)
        if value is None and default:
            return default[0]
        if not isinstance(value, (int, float)):
            raise UserError(f"{path}: {name} = {value!r} is not a number")
        return value

    heads, width = take("num_attention_heads"), take("hidden_size")
    theta, scaling = _rope(path, known)
    config = LlamaConfig(
        vocabulary=take("vocab_size"),
        width=width,
        layers=take("num_hidden_layers"),
        heads=heads,
        # Both defaults are those of transformers: one key/value head for each head, and heads that
        # divide the width evenly.
        key_value_heads=take("num_key_value_heads", heads),
        head_size=take("head_dim", width // heads),
        feed_forward=take("intermediate_size"),
        context=take("max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=take("rms_norm_eps"),
        tied=take("tie_word_embeddings", False),
    )
    if known:
        raise UserError(f"{path}: {sorted(known)[0]} is not understood")
    if config.heads % config.key_value_heads or config.head_size % 2:
        raise UserError(
            f"{path}: num_attention_heads ({config.heads}) must be a multiple of "
            f"num_key_value_heads ({config.key_value_heads}), and head_dim ({config.head_size}) "
            f"must be even"
        )
    return config


def _rope(path: str, known: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling.

    transformers 5 writes both into `rope_parameters`; older versions write `rope_theta` and
    `rope_scaling`.
    """
    scaling = dict(known.pop("rope_parameters", None) or known.pop("rope_scaling", None) or {})
    known.pop("rope_scaling", None)
    # The configs of Llama-1 and Llama-2 lack rope_theta. Their code fixes it at 10,000.
    theta = known.pop("rope_theta", None) or scaling.pop("rope_theta", None) or 10000.0
    scaling.pop("rope_theta", None)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", "default")
    scaling.pop("type", None)
    if kind == "default" and not scaling:
        return float(theta), None
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind != "llama3" or set(scaling) != set(fields):
        raise UserError(
            f"{path}: rope_scaling of type {kind!r} with {sorted(scaling)} is not supported"
        )
    factor, low, high, original_context = (scaling[field] for field in fields)
    return float(theta), RopeScaling(float(factor), float(low), float(high), original_context)
