"""The tensors of a gpt-oss: their names in a Hugging Face checkpoint and their form here.

A checkpoint holds the weights of experts with inputs before outputs, or packed in four bits. The
outputs of the gate and of the up product take turns. Here outputs are first, gate before up.
"""

from __future__ import annotations

import numpy as np

from tddpo_jax.models.mxfp4 import MXFP4
from tddpo_jax.models.tensor_table import Kind, TargetParameter, Tensor, Transform, linear_names

EMBED = Tensor("model.embed_tokens.weight", "embed", ("vocabulary", "width"), "embedding")
NORM = Tensor("model.norm.weight", "norm.weight", ("width",), "norm")
HEAD = Tensor("lm_head.weight", "head", ("vocabulary", "width"), "embedding")


def _halves(x: np.ndarray) -> np.ndarray:
    """Takes turns apart on the second axis: `[E, 2 F, ...]` becomes `[E, 2, F, ...]`."""
    return x.reshape(len(x), -1, 2, *x.shape[2:]).swapaxes(1, 2)


def _turns(x: np.ndarray) -> np.ndarray:
    """The inverse of `_halves`."""
    return x.swapaxes(1, 2).reshape(len(x), -1, *x.shape[3:])


def _turned(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(1, 2)


GATE_UP = Transform(lambda x: _halves(_turned(x)), lambda x: _turned(_turns(x)))
DOWN = Transform(_turned, _turned)
BIASES = Transform(_halves, _turns)


def _row(part: str, path: str, kind: Kind, *axes: str) -> Tensor:
    return Tensor(f"model.layers.{{}}.{part}", path, axes, kind)


def _projection(name: str, outputs: str, inputs: str) -> tuple[Tensor, Tensor]:
    return (
        _row(f"self_attn.{name}.weight", f"{name}.weight", "linear", outputs, inputs),
        _row(f"self_attn.{name}.bias", f"{name}.bias", "bias", outputs),
    )


def _target(name: str, outputs: Transform | None) -> TargetParameter:
    return TargetParameter(f"model.layers.{{}}.mlp.experts.{name}", outputs)


# The tensors of every layer.
LAYER = (
    _row("input_layernorm.weight", "attention_norm.weight", "norm", "width"),
    *_projection("q_proj", "queries", "width"),
    *_projection("k_proj", "keys", "width"),
    *_projection("v_proj", "values", "width"),
    *_projection("o_proj", "width", "attended"),
    _row("self_attn.sinks", "sinks", "bias", "heads"),
    _row("post_attention_layernorm.weight", "mlp_norm.weight", "norm", "width"),
    _row("mlp.router.weight", "router.weight", "router", "routes", "routed"),
    _row("mlp.router.bias", "router.bias", "router", "routes"),
    _row(
        "mlp.experts.gate_up_proj",
        "experts.gate_up.weight",
        "experts",
        *("experts", "halves", "feed_forward", "width"),
    )._replace(transform=GATE_UP, packing=MXFP4, target=_target("gate_up_proj", BIASES)),
    _row(
        "mlp.experts.gate_up_proj_bias",
        "experts.gate_up.bias",
        "bias",
        *("experts", "halves", "feed_forward"),
    )._replace(transform=BIASES),
    _row(
        "mlp.experts.down_proj",
        "experts.down.weight",
        "experts",
        *("experts", "width", "feed_forward"),
    )._replace(transform=DOWN, packing=MXFP4, target=_target("down_proj", None)),
    _row("mlp.experts.down_proj_bias", "experts.down.bias", "bias", "experts", "width"),
)
LINEAR_NAMES = linear_names(LAYER)
