"""Reads the attributes of the `config.json` of a Llama or of a relative of it.

The relatives compute what a Llama computes, apart from what `MODEL_TYPES` says of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
}


class ModelType(NamedTuple):
    """What sets a model type apart from the others."""

    required: dict[str, tuple[Any, ...]]  # more of `REQUIRED_VALUES`
    ignored: tuple[str, ...] = ()  # more attributes that change nothing
    biases: bool = False  # as in `LlamaConfig`
    head_norms: bool = False  # as in `LlamaConfig`
    head_size: int | None = None  # value of `head_dim` if the file has none; None: width / heads
    window: int | None = None  # value of `sliding_window` if the file has none


# Qwen's window has a switch. While it is off, nothing reads the window's size and layers.
SWITCHED_OFF: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False, None)}
QWEN_WINDOW = ("sliding_window", "max_window_layers")
MODEL_TYPES = {
    "llama": ModelType({"sliding_window": (None,)}),
    "mistral": ModelType({}, window=4096),
    "qwen2": ModelType(SWITCHED_OFF, QWEN_WINDOW, biases=True),
    "qwen3": ModelType(SWITCHED_OFF, QWEN_WINDOW, head_norms=True, head_size=128),
}


def read_config(attributes: Mapping[str, Any], path: str) -> LlamaConfig:
    """The shape of a model. `families.read_config` documents the arguments and the errors."""
    of_type = MODEL_TYPES[attributes["model_type"]]
    required = {**REQUIRED_VALUES, **of_type.required}
    for name, understood in required.items():
        if name in attributes and attributes[name] not in understood:
            raise UserError(f"{path}: {name} = {attributes[name]!r} is not supported")
    known = dict(attributes)
    for name in (*required, *BOOKKEEPING, *of_type.ignored):
        known.pop(name, None)
    for kind in known.pop("layer_types", None) or ():
        if kind != "full_attention":
            raise UserError(f"{path}: layer_types = {kind!r} is not supported")

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
    known.setdefault("sliding_window", of_type.window)
    theta, scaling = _rope(path, known)
    config = LlamaConfig(
        vocabulary=take("vocab_size"),
        width=width,
        layers=take("num_hidden_layers"),
        heads=heads,
        # The defaults are those of transformers: one key/value head for each head, and heads that
        # divide the width evenly, or Qwen3's heads of 128.
        key_value_heads=take("num_key_value_heads", heads),
        head_size=take("head_dim", of_type.head_size or width // heads),
        feed_forward=take("intermediate_size"),
        context=take("max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=take("rms_norm_eps"),
        tied=take("tie_word_embeddings", False),
        biases=of_type.biases,
        head_norms=of_type.head_norms,
        window=take("sliding_window", None),
    )
    if known:
        raise UserError(f"{path}: {sorted(known)[0]} is not understood")
    if config.window is not None and config.window < 1:
        raise UserError(f"{path}: sliding_window must be at least 1, got {config.window}")
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
