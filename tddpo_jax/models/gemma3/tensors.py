"""The tensors of a Gemma 3: their names in a Hugging Face checkpoint and their form here.

The names of a checkpoint that also has a vision part begin with `language_model.`. transformers
gives the modules of such a model another name in memory, and PEFT's files follow that.
"""

from __future__ import annotations

from tddpo_jax.models.tensor_table import Kind, Tensor, linear_names

WITH_VISION = "language_model."
# The tensors of the vision part. They are not trained, and an export copies them.
CARRIED = ("vision_tower.", "multi_modal_projector.")


def _tensor(prefix: str, part: str, path: str, kind: Kind, *axes: str) -> Tensor:
    module = f"model.language_model.{part}.weight" if prefix else None
    return Tensor(f"{prefix}model.{part}.weight", path, axes, kind, module_name=module)


def embed(prefix: str) -> Tensor:
    """The embedding. It is always the head too, and some checkpoints repeat it as one."""
    table = _tensor(prefix, "embed_tokens", "embed", "embedding", "vocabulary", "width")
    return table._replace(repeated_as=f"{prefix}lm_head.weight")


def last_norm(prefix: str) -> Tensor:
    return _tensor(prefix, "norm", "norm.weight", "norm", "width")


def layer(prefix: str) -> tuple[Tensor, ...]:
    """The tensors of every layer."""

    def row(part: str, name: str, kind: Kind, *axes: str) -> Tensor:
        return _tensor(prefix, f"layers.{{}}.{part}", f"{name}.weight", kind, *axes)

    return (
        row("input_layernorm", "attention_norm", "norm", "width"),
        row("self_attn.q_proj", "q_proj", "linear", "queries", "width"),
        row("self_attn.k_proj", "k_proj", "linear", "keys", "width"),
        row("self_attn.v_proj", "v_proj", "linear", "values", "width"),
        row("self_attn.o_proj", "o_proj", "linear", "width", "attended"),
        row("self_attn.q_norm", "q_norm", "norm", "head"),
        row("self_attn.k_norm", "k_norm", "norm", "head"),
        row("post_attention_layernorm", "attended_norm", "norm", "width"),
        row("pre_feedforward_layernorm", "mlp_norm", "norm", "width"),
        row("mlp.gate_proj", "gate_proj", "linear", "feed_forward", "width"),
        row("mlp.up_proj", "up_proj", "linear", "feed_forward", "width"),
        row("mlp.down_proj", "down_proj", "linear", "width", "feed_forward"),
        row("post_feedforward_layernorm", "output_norm", "norm", "width"),
    )


LINEAR_NAMES = linear_names(layer(""))
