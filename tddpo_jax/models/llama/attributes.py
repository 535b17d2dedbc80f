"""Reads the attributes of the `config.json` of a Llama or of a relative of it.

The relatives compute what a Llama computes, apart from what `MODEL_TYPES` says of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import (
    MOST_LAYERS,
    check_all_read,
    check_heads,
    positive_number,
    rope_attributes,
    stretched_rope,
    take_numbers,
    unread,
    whole_number,
)
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.models.rope import RopeScaling

# Whole numbers, and reals, of which no file may lack one.
SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "context",
}
REALS = {"rms_norm_eps": "norm_epsilon"}
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
    known = unread(attributes, required, (*BOOKKEEPING, *of_type.ignored), path)
    kinds = known.pop("layer_types", None) or []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind != "full_attention":
            raise UserError(f"{path}: layer_types = {kind!r} is not supported")

    numbers = {
        **take_numbers(known, SIZES, whole_number, path),
        **take_numbers(known, REALS, positive_number, path),
    }
    whole_number(numbers["layers"], "num_hidden_layers", path, MOST_LAYERS)
    heads, width = numbers["heads"], numbers["width"]

    def count(name: str, default: int) -> int:
        value = known.pop(name, None)
        return whole_number(default if value is None else value, name, path)

    window = known.pop("sliding_window", of_type.window)
    theta, scaling = _rope(path, known)
    tied = known.pop("tie_word_embeddings", None)
    if tied not in (True, False, None):
        raise UserError(f"{path}: tie_word_embeddings = {tied!r} is neither true nor false")
    config = LlamaConfig(
        # The defaults are those of transformers: one key/value head for each head, and heads that
        # divide the width evenly, or Qwen3's heads of 128.
        key_value_heads=count("num_key_value_heads", heads),
        head_size=count("head_dim", of_type.head_size or width // heads),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(tied),
        biases=of_type.biases,
        head_norms=of_type.head_norms,
        window=None if window is None else whole_number(window, "sliding_window", path),
        **numbers,
    )
    check_all_read(known, path)
    check_heads(heads, config.key_value_heads, config.head_size, path)
    return config


def _rope(path: str, known: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling."""
    kind, base, scaling = rope_attributes(known, path)
    # The configs of Llama-1 and Llama-2 lack rope_theta. Their code fixes it at 10,000.
    theta = 10000.0 if base is None else base
    return theta, stretched_rope(kind, scaling, path)
