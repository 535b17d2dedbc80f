"""Reads the attributes of a Llama 4's `config.json`, and rewrites them for an export.

A file may leave out what transformers has as a default. Those defaults are written here.
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
    rope_attributes,
    stretched_rope,
    take_numbers,
    text_part,
    unread,
    whole_number,
)
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.llama4.model import Kind, Llama4Config, Temperature

TEXT_ALONE = "llama4_text"
MODEL_TYPES = (TEXT_ALONE, "llama4")  # the second has a vision part too
# Whole numbers, and reals, of which no file may lack one.
SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_size",
    "intermediate_size_mlp": "feed_forward",
    "intermediate_size": "expert_feed_forward",
    "num_local_experts": "experts",
    "max_position_embeddings": "context",
}
REALS = {"rms_norm_eps": "norm_epsilon"}
# Defaults of transformers, `Llama4TextConfig` and `Llama4Config`.
CHUNK, THETA = 8192, 500_000.0
IMAGE_TOKEN = 200092
LOCAL, WHOLE = "chunked_attention", "full_attention"
TUNING = "attn_temperature_tuning"
TUNED = 4  # older files have this number in place of true
# The router's loss and noise belong to pre-training, and the cache of generation is ours.
IGNORED_ATTRIBUTES = (
    *BOOKKEEPING,
    *("router_aux_loss_coef", "router_jitter_noise", "output_router_logits"),
    *("for_llm_compressor", "cache_implementation"),
)
# Attributes of the whole of a text part and a vision part, besides `text_config`.
IGNORED_WITH_VISION = (
    *("vision_config", "boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id"),
)
# These attributes would change the mathematics. Only the values that switch them off are accepted.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "attention_dropout": (0, None),
    "tie_word_embeddings": (False, None),
}


def read_config(attributes: Mapping[str, Any], path: str) -> Llama4Config:
    """The shape of a Llama 4, of text alone or with a vision part.

    `families.read_config` documents the arguments and the errors.
    """
    if attributes["model_type"] == TEXT_ALONE:
        return _read_text(attributes, path, image_token=None)
    outer = _unread(attributes, path)
    text, image_token = text_part(outer, IGNORED_WITH_VISION, IMAGE_TOKEN, path)
    return _read_text(text, f"{path}: text_config", image_token=image_token)


def exported(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an export. transformers 5 takes no number as the temperature's switch."""
    if isinstance(attributes.get("text_config"), dict):
        return {**attributes, "text_config": exported(attributes["text_config"])}
    if attributes.get(TUNING) is None:
        return attributes
    return {**attributes, TUNING: bool(attributes[TUNING])}


def _unread(attributes: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The attributes that are still to be read, if the weights are not packed."""
    known = unread(attributes, REQUIRED_VALUES, IGNORED_ATTRIBUTES, path)
    if known.pop("quantization_config", None) is not None:
        raise UserError(
            f"{path}: quantization_config is not supported for Llama 4; use the repository that "
            f"holds its weights in bfloat16"
        )
    return known


def _read_text(
    attributes: Mapping[str, Any], path: str, *, image_token: int | None
) -> Llama4Config:
    known = _unread(attributes, path)
    numbers = {
        **take_numbers(known, SIZES, whole_number, path),
        **take_numbers(known, REALS, positive_number, path),
    }
    kind, theta, scaling = rope_attributes(known, path)
    chunk = known.pop("attention_chunk_size", CHUNK)
    config = Llama4Config(
        kinds=_kinds(known, path),
        chosen=whole_number(
            known.pop("num_experts_per_tok", 1), "num_experts_per_tok", path, numbers["experts"]
        ),
        chunk=None if chunk is None else whole_number(chunk, "attention_chunk_size", path),
        head_norms=_switch(known, "use_qk_norm", path),
        temperature=_temperature(known, path),
        rope_theta=THETA if theta is None else theta,
        rope_scaling=stretched_rope(kind, scaling, path),
        image_token=image_token,
        **numbers,
    )
    _check_layer_types(known.pop("layer_types", None), config, path)
    check_all_read(known, path)
    check_heads(config.heads, config.key_value_heads, config.head_size, path)
    return config


def _kinds(known: dict[str, Any], path: str) -> tuple[Kind, ...]:
    """The kinds of all layers, by the files' lists or else by their rules."""
    name = "num_hidden_layers"
    layers = whole_number(known.pop(name, None), name, path, MOST_LAYERS)
    steps = {
        name: whole_number(known.pop(name, default), name, path)
        for name, default in (("no_rope_layer_interval", 4), ("interleave_moe_layer_step", 1))
    }
    # In transformers an empty list means the rule.
    local = known.pop("no_rope_layers", None) or [
        number % steps["no_rope_layer_interval"] != 0 for number in range(1, layers + 1)
    ]
    if not isinstance(local, list) or len(local) < layers or any(x not in (0, 1) for x in local):
        raise UserError(f"{path}: no_rope_layers must be a list of 0 or 1 for every layer")
    step, routed = steps["interleave_moe_layer_step"], known.pop("moe_layers", None)
    routed = list(range(step - 1, layers, step)) if routed is None else routed
    if not isinstance(routed, list) or any(x not in range(layers) for x in routed):
        raise UserError(f"{path}: moe_layers must be a list of numbers from 0 to {layers - 1}")
    return tuple(Kind(bool(local[number]), number in routed) for number in range(layers))


def _check_layer_types(found: Any, config: Llama4Config, path: str) -> None:
    """transformers 5 also writes what each layer sees, which follows from the other attributes."""
    has_chunks = config.chunk is not None
    expected = [LOCAL if kind.is_local and has_chunks else WHOLE for kind in config.kinds]
    if found is not None and found != expected:
        raise UserError(
            f"{path}: layer_types is not supported: it must have {LOCAL} where no_rope_layers has "
            f"1, and {WHOLE} elsewhere"
        )


def _switch(known: dict[str, Any], name: str, path: str, *others: int) -> bool:
    """Whether an attribute is on, as it is by default. `others` mean that too."""
    value = known.pop(name, True)
    if value not in (True, False, *others):
        raise UserError(f"{path}: {name} = {value!r} is neither true nor false")
    return bool(value)


def _temperature(known: dict[str, Any], path: str) -> Temperature | None:
    scale, period = (
        positive_number(known.pop(name, default), name, path)
        for name, default in (("attn_scale", 0.1), ("floor_scale", 8192))
    )
    return Temperature(scale, period) if _switch(known, TUNING, path, TUNED) else None
