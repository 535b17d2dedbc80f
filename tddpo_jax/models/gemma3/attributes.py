"""Reads the attributes of a Gemma 3's `config.json`.

The files of the larger models leave out what transformers has as a default. Those defaults are
written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import (
    MOST_LAYERS,
    check_all_read,
    check_heads,
    positive_number,
    take_numbers,
    text_part,
    unread,
    whole_number,
)
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.gemma3.model import Gemma3Config

# Whole numbers, and reals, of which no file may lack one that has no default.
SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_size",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "context",
    "sliding_window": "window",
    "sliding_window_pattern": "period",
}
REALS = {"query_pre_attn_scalar": "score_scalar", "rms_norm_eps": "norm_epsilon"}
# The defaults of transformers, `Gemma3TextConfig`.
DEFAULTS: dict[str, float] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
IMAGE_TOKEN = 262144  # the default of transformers, `Gemma3Config`
TEXT_ALONE = "gemma3_text"
MODEL_TYPES = (TEXT_ALONE, "gemma3")  # the second has a vision part too
LOCAL_THETA, WHOLE_THETA = 10_000.0, 1_000_000.0
LOCAL, WHOLE = "sliding_attention", "full_attention"

# The cache of generation is ours, and the period is read from `sliding_window_pattern`.
IGNORED_ATTRIBUTES = (*BOOKKEEPING, "cache_implementation", "_sliding_window_pattern")
# Attributes of the whole of a text part and a vision part, besides `text_config`.
IGNORED_WITH_VISION = (
    *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index"),
    *("boi_token_id", "eoi_token_id"),
)
# These attributes would change the mathematics. Only the values that switch them off are accepted.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "hidden_act": ("gelu_pytorch_tanh", None),
    "attention_bias": (False, None),
    "attention_dropout": (0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "tie_word_embeddings": (True, None),
    "quantization_config": (None,),
}


def read_config(attributes: Mapping[str, Any], path: str) -> Gemma3Config:
    """The shape of a Gemma 3, of text alone or with a vision part.

    `families.read_config` documents the arguments and the errors.
    """
    if attributes["model_type"] == TEXT_ALONE:
        return _read_text(attributes, path, image_token=None)
    outer = unread(attributes, REQUIRED_VALUES, IGNORED_ATTRIBUTES, path)
    text, image_token = text_part(outer, IGNORED_WITH_VISION, IMAGE_TOKEN, path)
    return _read_text(text, f"{path}: text_config", image_token=image_token)


def _read_text(
    attributes: Mapping[str, Any], path: str, *, image_token: int | None
) -> Gemma3Config:
    known = unread(attributes, REQUIRED_VALUES, IGNORED_ATTRIBUTES, path)
    known |= {name: value for name, value in DEFAULTS.items() if known.get(name) is None}
    numbers = {
        **take_numbers(known, SIZES, whole_number, path),
        **take_numbers(known, REALS, positive_number, path),
    }
    layers, period = numbers["layers"], numbers["period"]
    whole_number(layers, "num_hidden_layers", path, MOST_LAYERS)
    _check_layer_types(known.pop("layer_types", None), layers, period, path)
    local_theta, whole_theta, factor = _rope(known, path)
    check_all_read(known, path)
    check_heads(numbers["heads"], numbers["key_value_heads"], numbers["head_size"], path)
    return Gemma3Config(
        local_theta=local_theta,
        whole_theta=whole_theta,
        rope_factor=factor,
        image_token=image_token,
        **numbers,
    )


def _check_layer_types(kinds: Any, layers: int, period: int, path: str) -> None:
    """transformers 5 lists the kind of every layer. We know the period alone."""
    expected = [WHOLE if number % period == 0 else LOCAL for number in range(1, layers + 1)]
    if kinds is not None and kinds != expected:
        raise UserError(
            f"{path}: layer_types is not supported: only every layer whose number is a multiple of "
            f"sliding_window_pattern, {period}, may be {WHOLE}"
        )


def _rope(known: dict[str, Any], path: str) -> tuple[float, float, float]:
    """The bases of the local and of the other layers, and the factor of the others' frequencies.

    transformers 5 writes all into `rope_parameters`. Older versions write one attribute for each.
    Of a file that has both, we read what transformers reads.
    """
    bases = known.pop("rope_local_base_freq", None), known.pop("rope_theta", None)
    scaling = known.pop("rope_scaling", None) or {}
    by_kind = known.pop("rope_parameters", None)
    if not isinstance(scaling, Mapping):
        raise UserError(f"{path}: rope_scaling = {scaling!r} is not an object")
    if by_kind is None:
        by_kind = {LOCAL: {}, WHOLE: {}}
    if not _has_both_kinds(by_kind):
        raise UserError(f"{path}: rope_parameters must have objects {LOCAL} and {WHOLE}")
    local = {"rope_theta": bases[0], **by_kind[LOCAL]}
    whole = {"rope_theta": bases[1], **by_kind[WHOLE], **scaling}
    local_theta, local_factor = _scaled(local, "rope_local_base_freq", LOCAL_THETA, path)
    if local_factor != 1.0:
        raise UserError(f"{path}: rope of type 'linear' in {LOCAL} is not supported")
    return local_theta, *_scaled(whole, "rope_theta", WHOLE_THETA, path)


def _scaled(rope: dict[str, Any], name: str, default: float, path: str) -> tuple[float, float]:
    """The base of one kind of layer, by this name in messages, and what divides its frequencies."""
    kinds = rope.pop("rope_type", None), rope.pop("type", None)
    kind, theta = kinds[0] or kinds[1] or "default", rope.pop("rope_theta", None)
    theta = positive_number(default if theta is None else theta, name, path)
    if kind == "default" and not rope:
        return theta, 1.0
    if kind != "linear" or set(rope) != {"factor"}:
        raise UserError(f"{path}: rope of type {kind!r} with {sorted(rope)} is not supported")
    return theta, positive_number(rope["factor"], "factor", path)


def _has_both_kinds(ropes: Any) -> bool:
    return (
        isinstance(ropes, Mapping)
        and set(ropes) == {LOCAL, WHOLE}
        and all(isinstance(each, Mapping) for each in ropes.values())
    )
