"""Reads the attributes of a DeepSeek's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import (
    MOST_LAYERS,
    check_all_read,
    positive_number,
    rope_attributes,
    take_numbers,
    unread,
    whole_number,
    yarn_attributes,
)
from tddpo_jax.models.bookkeeping import BOOKKEEPING
from tddpo_jax.models.deepseek.indexer import IndexerShape
from tddpo_jax.models.deepseek.latent_attention import LatentShape
from tddpo_jax.models.deepseek.model import DeepseekConfig
from tddpo_jax.models.fp8 import BLOCK
from tddpo_jax.models.rope import Yarn, magnitude

WITH_INDEXER = "deepseek_v32"
MODEL_TYPES = ("deepseek_v3", WITH_INDEXER)
# Whole numbers, of which no file may lack one.
ATTENTION_SIZES = {
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "q_lora_rank": "query_latent",
    "kv_lora_rank": "key_latent",
    "qk_nope_head_dim": "plain_size",
    "qk_rope_head_dim": "rotated_size",
    "v_head_dim": "value_size",
}
INDEXER_SIZES = {"index_n_heads": "heads", "index_head_dim": "size", "index_topk": "most"}
SIZES = {
    "vocab_size": "vocabulary",
    "num_hidden_layers": "layers",
    "intermediate_size": "feed_forward",
    "moe_intermediate_size": "expert_feed_forward",
    "n_shared_experts": "shared_experts",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "chosen",
    "n_group": "groups",
    "topk_group": "kept_groups",
    "max_position_embeddings": "context",
}
REALS = {"rms_norm_eps": "norm_epsilon", "routed_scaling_factor": "route_factor"}
DENSE_LAYERS, FURTHER = "first_k_dense_replace", "num_nextn_predict_layers"
# Two more attributes of YaRN: they set the factor of rotated features and that of the scores.
MAGNITUDES = ("mscale", "mscale_all_dim")
# What packed weights must be.
PACKING = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
# These belong to pre-training, or to programs that run the model.
IGNORED_ATTRIBUTES = (
    *BOOKKEEPING,
    *("ep_size", "aux_loss_alpha", "seq_aux", "router_aux_loss_coef", "output_router_logits"),
)
# These attributes would change the mathematics. Only these values are accepted.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "tie_word_embeddings": (False, None),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "norm_topk_prob": (True,),
    "rope_interleave": (True, None),
    "pretraining_tp": (1, None),
}


def read_config(attributes: Mapping[str, Any], path: str) -> DeepseekConfig:
    """The shape of a DeepSeek. `families.read_config` documents the arguments and the errors."""
    known = unread(attributes, REQUIRED_VALUES, IGNORED_ATTRIBUTES, path)
    _check_packing(known.pop("quantization_config", None), path)
    attention = LatentShape(**take_numbers(known, ATTENTION_SIZES, whole_number, path))
    indexer = None
    if attributes["model_type"] == WITH_INDEXER:
        indexer = IndexerShape(**take_numbers(known, INDEXER_SIZES, whole_number, path))
    sizes = {
        **take_numbers(known, SIZES, whole_number, path),
        **take_numbers(known, REALS, positive_number, path),
    }
    layers = whole_number(sizes["layers"], "num_hidden_layers", path, MOST_LAYERS)
    dense = whole_number(known.pop(DENSE_LAYERS, None), DENSE_LAYERS, path, at_least=0)
    dense = min(dense, layers)
    # A checkpoint may hold such a layer although its config does not count it.
    further = max(1, whole_number(known.pop(FURTHER, 1), FURTHER, path, MOST_LAYERS, at_least=0))
    _check_groups(sizes, path)
    derived = {
        "num_key_value_heads": attention.heads,
        "head_dim": attention.rotated_size,
        "qk_head_dim": attention.size,
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (layers - dense),
        "layer_types": ["full_attention" if indexer is None else "indexed_attention"] * layers,
    }
    _check_derived(known, derived, path)
    rope = _rope(known, path)
    check_all_read(known, path)
    if indexer is not None and indexer.size < attention.rotated_size:
        raise UserError(
            f"{path}: index_head_dim ({indexer.size}) must be at least qk_rope_head_dim "
            f"({attention.rotated_size})"
        )
    if attention.rotated_size % 2:
        raise UserError(f"{path}: qk_rope_head_dim ({attention.rotated_size}) must be even")
    return DeepseekConfig(
        attention=attention,
        indexer=indexer,
        dense_layers=dense,
        further_layers=further,
        **sizes,
        **rope._asdict(),
    )


def exported(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an export, which has no layers that predict further tokens."""
    return attributes | ({FURTHER: 0} if FURTHER in attributes else {})


def _check_packing(settings: Any, path: str) -> None:
    """Packed weights must be FP8 in blocks. `weights.packed` checks which tensors are packed."""
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise UserError(f"{path}: quantization_config = {settings!r} is not an object")
    for name, value in PACKING.items():
        if settings.get(name, value) != value:
            raise UserError(
                f"{path}: quantization_config with {name} = {settings[name]!r} is not supported, "
                f"only {value!r}"
            )


def _check_groups(sizes: Mapping[str, Any], path: str) -> None:
    """Checks that the groups share the experts evenly, and that the kept ones hold enough."""
    experts, groups = sizes["experts"], sizes["groups"]
    if experts % groups or experts < 2 * groups:
        raise UserError(
            f"{path}: n_routed_experts ({experts}) must be a multiple of n_group ({groups}), and "
            "every group must have two experts"
        )
    whole_number(sizes["kept_groups"], "topk_group", path, groups)
    most = sizes["kept_groups"] * experts // groups
    whole_number(sizes["chosen"], "num_experts_per_tok", path, most)


def _check_derived(known: dict[str, Any], derived: Mapping[str, Any], path: str) -> None:
    """Takes out what follows from other attributes, and refuses what does not follow."""
    for name, wanted in derived.items():
        value = known.pop(name, None)
        if value is not None and value != wanted:
            raise UserError(
                f"{path}: {name} = {value!r} is not supported; the others require {wanted!r}"
            )


class _Rope(NamedTuple):
    """The fields of the config that the attributes of rope give."""

    rope_theta: float
    yarn: Yarn | None
    rope_factor: float
    score_factor: float


def _rope(known: dict[str, Any], path: str) -> _Rope:
    kind, theta, scaling = rope_attributes(known, path)
    if theta is None:
        raise UserError(f"{path}: rope_theta is missing")
    factors = {name: scaling.pop(name, None) for name in MAGNITUDES if kind == "yarn"}
    yarn = yarn_attributes(kind, scaling, path, truncate=True)
    if yarn is None:
        return _Rope(theta, None, 1.0, 1.0)
    rotated, scores = (
        positive_number(factor, name, path) if factor else 0.0 for name, factor in factors.items()
    )
    rope_factor = yarn.attention_factor
    if rotated and scores:
        rope_factor = magnitude(yarn.factor, rotated) / magnitude(yarn.factor, scores)
    of_scores = magnitude(yarn.factor, scores)
    square = positive_number(of_scores * of_scores, MAGNITUDES[1], path)  # it may be infinite
    return _Rope(theta, yarn, rope_factor, square)
