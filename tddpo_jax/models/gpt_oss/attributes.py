"""Reads the attributes of a gpt-oss's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import (
    MOST_LAYERS,
    check_all_read,
    check_heads,
    positive_number,
    rope_attributes,
    take_numbers,
    unread,
    whole_number,
    yarn_attributes,
)
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.gpt_oss.model import SHARPNESS, GptOssConfig
from tddpo_jax.models.rope import Yarn

MODEL_TYPES = ("gpt_oss",)
# Whole numbers, and reals, of which no file may lack one.
SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_size",
    "intermediate_size": "feed_forward",
    "num_local_experts": "experts",
    "num_experts_per_tok": "chosen",
    "max_position_embeddings": "context",
    "sliding_window": "window",
}
REALS = {"rms_norm_eps": "norm_epsilon", "swiglu_limit": "limit"}
DEFAULT_LIMIT = 7.0  # transformers has it in its code
LOCAL, WHOLE = "sliding_attention", "full_attention"
# The loss of the router belongs to pre-training. The context before the stretching of rope is among
# the attributes of rope as well.
IGNORED_ATTRIBUTES = (
    *BOOKKEEPING,
    *("router_aux_loss_coef", "output_router_logits", "initial_context_length"),
)
# These attributes would change the mathematics. Only the values that switch them off are accepted.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (True,),
    "attention_dropout": (0, None),
    "tie_word_embeddings": (False, None),
    "swiglu_alpha": (SHARPNESS,),  # transformers 5 writes it
}


def read_config(attributes: Mapping[str, Any], path: str) -> GptOssConfig:
    """The shape of a gpt-oss. `families.read_config` documents the arguments and the errors."""
    known = unread(attributes, REQUIRED_VALUES, IGNORED_ATTRIBUTES, path)
    _check_packing(known.pop("quantization_config", None), path)
    known.setdefault("swiglu_limit", DEFAULT_LIMIT)
    # An older name of the same number.
    known.setdefault("num_experts_per_tok", known.get("experts_per_token"))
    if known.pop("experts_per_token", known["num_experts_per_tok"]) != known["num_experts_per_tok"]:
        raise UserError(f"{path}: experts_per_token and num_experts_per_tok differ")
    numbers = {
        **take_numbers(known, SIZES, whole_number, path),
        **take_numbers(known, REALS, positive_number, path),
    }
    whole_number(numbers["layers"], "num_hidden_layers", path, MOST_LAYERS)
    whole_number(numbers["chosen"], "num_experts_per_tok", path, numbers["experts"])
    _check_layer_types(known.pop("layer_types", None), numbers["layers"], path)
    theta, yarn = _rope(known, path)
    check_all_read(known, path)
    check_heads(numbers["heads"], numbers["key_value_heads"], numbers["head_size"], path)
    return GptOssConfig(rope_theta=theta, yarn=yarn, **numbers)


def _check_packing(settings: Any, path: str) -> None:
    """Packed weights must be MXFP4. `weights.packed` checks which tensors are packed."""
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    if method != "mxfp4":
        raise UserError(f"{path}: quantization_config with {method!r} is not supported, only mxfp4")


def _check_layer_types(kinds: Any, layers: int, path: str) -> None:
    expected = [WHOLE if number % 2 else LOCAL for number in range(layers)]
    if kinds is not None and kinds != expected:
        raise UserError(
            f"{path}: layer_types is not supported: {LOCAL} and {WHOLE} must take turns, and "
            f"{LOCAL} must be first"
        )


def _rope(known: dict[str, Any], path: str) -> tuple[float, Yarn | None]:
    """The rotary base and its stretching."""
    kind, theta, scaling = rope_attributes(known, path)
    if theta is None:
        raise UserError(f"{path}: rope_theta is missing")
    return theta, yarn_attributes(kind, scaling, path)
