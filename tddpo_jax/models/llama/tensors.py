"""The tensors of a Llama and its relatives: their names in a checkpoint and their form here."""

from __future__ import annotations

from tddpo_jax.models.tensor_table import Tensor, linear_names

# A tied checkpoint either has no head or repeats the embedding under the head's name.
HEAD = Tensor("lm_head.weight", "head", ("vocabulary", "width"), "embedding")
EMBED = Tensor("model.embed_tokens.weight", "embed", ("vocabulary", "width"), "embedding")
TIED_EMBED = EMBED._replace(repeated_as=HEAD.hub_name)
NORM = Tensor("model.norm.weight", "norm.weight", ("width",), "norm")


def _norm(hub_name: str, name: str, axis: str = "width") -> Tensor:
    return Tensor(f"model.layers.{{}}.{hub_name}.weight", f"{name}.weight", (axis,), "norm")


def _linear(hub_part: str, name: str, outputs: str, inputs: str) -> Tensor:
    hub_name = f"model.layers.{{}}.{hub_part}.{name}.weight"
    return Tensor(hub_name, f"{name}.weight", (outputs, inputs), "linear")


def _bias(name: str, outputs: str) -> Tensor:
    return Tensor(f"model.layers.{{}}.self_attn.{name}.bias", f"{name}.bias", (outputs,), "bias")


# The tensors of every layer.
LAYER = (
    _norm("input_layernorm", "attention_norm"),
    _linear("self_attn", "q_proj", "queries", "width"),
    _linear("self_attn", "k_proj", "keys", "width"),
    _linear("self_attn", "v_proj", "values", "width"),
    _linear("self_attn", "o_proj", "width", "attended"),
    _norm("post_attention_layernorm", "mlp_norm"),
    _linear("mlp", "gate_proj", "feed_forward", "width"),
    _linear("mlp", "up_proj", "feed_forward", "width"),
    _linear("mlp", "down_proj", "width", "feed_forward"),
)
# Qwen2 has these too.
BIASES = (_bias("q_proj", "queries"), _bias("k_proj", "keys"), _bias("v_proj", "values"))
# Qwen3 has these too. All heads share them.
HEAD_NORMS = (
    _norm("self_attn.q_norm", "q_norm", "head"),
    _norm("self_attn.k_norm", "k_norm", "head"),
)
LINEAR_NAMES = linear_names(LAYER)
# Older checkpoints hold this buffer. We compute the frequencies from the config instead.
DERIVED = ("self_attn.rotary_emb.inv_freq",)
