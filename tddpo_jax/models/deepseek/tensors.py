"""The tensors of a DeepSeek: their names in a Hugging Face checkpoint and their form here.

A checkpoint holds one tensor for each product of each expert. Here the experts of a layer are
stacked, and gate and up too. All linear layers but the router may be packed in eight bits.
"""

from __future__ import annotations

from tddpo_jax.models.fp8 import FP8
from tddpo_jax.models.tensor_table import Kind, Pieces, Tensor, linear_names

EMBED = Tensor("model.embed_tokens.weight", "embed", ("vocabulary", "width"), "embedding")
NORM = Tensor("model.norm.weight", "norm.weight", ("width",), "norm")
HEAD = Tensor("lm_head.weight", "head", ("vocabulary", "width"), "embedding")


def _row(part: str, path: str, kind: Kind, *axes: str) -> Tensor:
    return Tensor(f"model.layers.{{}}.{part}", path, axes, kind)


def _linear(part: str, path: str, outputs: str, inputs: str) -> Tensor:
    row = _row(f"{part}.weight", f"{path}.weight", "linear", outputs, inputs)
    return row._replace(packing=FP8)


def _feed_forward(part: str, inner: str) -> tuple[Tensor, ...]:
    return (
        _linear(f"{part}.gate_proj", "feed_forward.gate_proj", inner, "width"),
        _linear(f"{part}.up_proj", "feed_forward.up_proj", inner, "width"),
        _linear(f"{part}.down_proj", "feed_forward.down_proj", "width", inner),
    )


def _experts(product: str, name: str, names: tuple[tuple[str, ...], ...], *axes: str) -> Tensor:
    """All experts of one product. The name of the whole is that of transformers' own model."""
    row = _row(f"mlp.experts.{product}", f"experts.{name}.weight", "experts", "experts", *axes)
    last = "{}" if len(names) > 1 else product
    pieces = Pieces(f"model.layers.{{}}.mlp.experts.{{}}.{last}.weight", names)
    return row._replace(packing=FP8, pieces=pieces)


# The tensors of every layer.
ATTENTION = (
    _row("input_layernorm.weight", "attention_norm.weight", "norm", "width"),
    _linear("self_attn.q_a_proj", "attention.q_a_proj", "query_latent", "width"),
    _row("self_attn.q_a_layernorm.weight", "attention.q_a_norm.weight", "norm", "query_latent"),
    _linear("self_attn.q_b_proj", "attention.q_b_proj", "queries", "query_latent"),
    _linear("self_attn.kv_a_proj_with_mqa", "attention.kv_a_proj_with_mqa", "compressed", "width"),
    _row("self_attn.kv_a_layernorm.weight", "attention.kv_a_norm.weight", "norm", "key_latent"),
    _linear("self_attn.kv_b_proj", "attention.kv_b_proj", "keys_values", "key_latent"),
    _linear("self_attn.o_proj", "attention.o_proj", "width", "attended"),
    _row("post_attention_layernorm.weight", "mlp_norm.weight", "norm", "width"),
)
# What chooses keys, in V3.2.
INDEXER = (
    _row(
        "self_attn.indexer.wq_b.weight",
        "attention.indexer.queries",
        "buffer",
        *("index_queries", "query_latent"),
    )._replace(packing=FP8),
    _row(
        "self_attn.indexer.wk.weight", "attention.indexer.keys", "buffer", "index_key", "width"
    )._replace(packing=FP8),
    _row("self_attn.indexer.k_norm.weight", "attention.indexer.norm_weight", "buffer", "index_key"),
    _row("self_attn.indexer.k_norm.bias", "attention.indexer.norm_bias", "buffer", "index_key"),
    _row(
        "self_attn.indexer.weights_proj.weight",
        "attention.indexer.weights",
        "buffer",
        *("index_heads", "width"),
    ),
)
DENSE = _feed_forward("mlp", "feed_forward")
MIXED = (
    _row("mlp.gate.weight", "router.weight", "router", "routes", "routed"),
    _row("mlp.gate.e_score_correction_bias", "router.correction", "buffer", "routes"),
    _experts(
        "gate_up_proj",
        "gate_up",
        ((), ("gate_proj", "up_proj")),
        *("halves", "feed_forward", "width"),
    ),
    _experts("down_proj", "down", ((),), "width", "feed_forward"),
    *_feed_forward("mlp.shared_experts", "shared_feed_forward"),
)
LINEAR_NAMES = linear_names((*ATTENTION, *DENSE))
