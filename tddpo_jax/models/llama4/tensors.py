"""The tensors of a Llama 4: their names in a Hugging Face checkpoint and their form here.

The names of a checkpoint that also has a vision part begin with `language_model.`. transformers
computes text alone by its causal language model, whose modules lack that beginning, and PEFT's
files follow the modules. A checkpoint holds the weights of experts with inputs before outputs, and
the gate's outputs before those of the up product. Here outputs are first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tddpo_jax.models.tensor_table import Kind, TargetParameter, Tensor, Transform, linear_names

WITH_VISION = "language_model."
# The tensors of the vision part. They are not trained, and an export copies them.
CARRIED = ("vision_model.", "multi_modal_projector.")


def _turned(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(1, 2)


def _halves(x: np.ndarray) -> np.ndarray:
    """`[E, D, 2 F]` becomes `[E, 2, F, D]`."""
    return _turned(x).reshape(len(x), 2, -1, x.shape[1])


def _side_by_side(x: np.ndarray) -> np.ndarray:
    """The inverse of `_halves`."""
    return _turned(x.reshape(len(x), -1, x.shape[3]))


# PEFT's outputs of the gate and the up product, which stand on the second axis.
OUTPUTS = Transform(
    lambda x: x.reshape(len(x), 2, -1, x.shape[2]), lambda x: x.reshape(len(x), -1, x.shape[3])
)


def _target(name: str, outputs: Transform | None) -> TargetParameter:
    """PEFT takes the inputs of these products for their outputs."""
    return TargetParameter(f"model.layers.{{}}.feed_forward.experts.{name}", outputs, swapped=True)


def _tensor(prefix: str, part: str, path: str, kind: Kind, *axes: str) -> Tensor:
    return Tensor(f"{prefix}{part}", path, axes, kind, module_name=part if prefix else None)


def embed(prefix: str) -> Tensor:
    axes = ("vocabulary", "width")
    return _tensor(prefix, "model.embed_tokens.weight", "embed", "embedding", *axes)


def last_norm(prefix: str) -> Tensor:
    return _tensor(prefix, "model.norm.weight", "norm.weight", "norm", "width")


def head(prefix: str) -> Tensor:
    return _tensor(prefix, "lm_head.weight", "head", "embedding", "vocabulary", "width")


def layer(prefix: str, *, has_experts: bool) -> tuple[Tensor, ...]:
    """The tensors of a layer, which has experts beside its feed-forward or not."""

    def row(part: str, path: str, kind: Kind, *axes: str) -> Tensor:
        return _tensor(prefix, f"model.layers.{{}}.{part}", path, kind, *axes)

    def linear(part: str, path: str, outputs: str, inputs: str) -> Tensor:
        return row(f"{part}.weight", f"{path}.weight", "linear", outputs, inputs)

    mlp = "feed_forward.shared_expert" if has_experts else "feed_forward"
    return (
        row("input_layernorm.weight", "attention_norm.weight", "norm", "width"),
        linear("self_attn.q_proj", "q_proj", "queries", "width"),
        linear("self_attn.k_proj", "k_proj", "keys", "width"),
        linear("self_attn.v_proj", "v_proj", "values", "width"),
        linear("self_attn.o_proj", "o_proj", "width", "attended"),
        row("post_attention_layernorm.weight", "mlp_norm.weight", "norm", "width"),
        linear(f"{mlp}.gate_proj", "feed_forward.gate_proj", "feed_forward", "width"),
        linear(f"{mlp}.up_proj", "feed_forward.up_proj", "feed_forward", "width"),
        linear(f"{mlp}.down_proj", "feed_forward.down_proj", "width", "feed_forward"),
        *(_experts(row) if has_experts else ()),
    )


def _experts(row: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    gate_up = ("experts", "halves", "feed_forward", "width")
    down = ("experts", "width", "feed_forward")
    experts = "feed_forward.experts"
    return (
        row("feed_forward.router.weight", "router.weight", "router", "routes", "routed"),
        row(f"{experts}.gate_up_proj", "experts.gate_up.weight", "experts", *gate_up)._replace(
            transform=Transform(_halves, _side_by_side), target=_target("gate_up_proj", OUTPUTS)
        ),
        row(f"{experts}.down_proj", "experts.down.weight", "experts", *down)._replace(
            transform=Transform(_turned, _turned), target=_target("down_proj", None)
        ),
    )


LINEAR_NAMES = linear_names(layer("", has_experts=False))
