"""gpt-oss as flax.nnx modules.

This module holds shapes and mathematics. It knows no mesh, no files and no loss.

Letters: B rows, T stream positions, D width, H heads, K key/value heads.

References:
    OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025).
    huggingface/transformers, `models/gpt_oss/modeling_gpt_oss.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tddpo_jax.models.architecture import Layer, Segment, layer_parameters
from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.experts.experts import Experts, ExpertsShape, routed_sum, router_logits
from tddpo_jax.models.experts.routing import softmax_of_best
from tddpo_jax.models.gpt_oss import tensors
from tddpo_jax.models.gpt_oss.tensors import LINEAR_NAMES
from tddpo_jax.models.linear import DropoutKeys, Linear, dropout_keys, mark_product
from tddpo_jax.models.norm import RMSNorm
from tddpo_jax.models.rope import Yarn, rope_angles, rotate, yarn_frequencies
from tddpo_jax.models.tensor_table import Parameter, parameter

SHARPNESS = 1.702  # of the sigmoid in the activation


@dataclasses.dataclass(frozen=True)
class Clamped:
    """The hidden part of an expert: `(up + 1) * gate * sigmoid(1.702 gate)` of clamped inputs.

    Two of the same limit are equal, and so are the tree structures of two models that hold them.
    """

    limit: float

    def __call__(self, gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * gate * jax.nn.sigmoid(SHARPNESS * gate)


@dataclasses.dataclass(frozen=True)
class GptOssConfig:
    """The shape of a gpt-oss. It implements `DecoderConfig`.

    No field has a default, because a wrong default would go unnoticed.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int  # hidden features of each expert
    experts: int
    chosen: int  # number of experts that a token uses
    limit: float  # of what enters an expert's activation
    context: int
    window: int  # newest positions that a token sees in the first of two layers, with its own
    rope_theta: float
    yarn: Yarn | None
    norm_epsilon: float

    tied = False
    embedding_scale = 1.0
    carried = ()
    dropped = ()
    not_text = ()
    derived = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the axes of its tensors, by the axes' names."""
        return {
            "vocabulary": self.vocabulary,
            "width": self.width,
            "heads": self.heads,
            **self._attention(None).axes,
            **self.experts_shape.axes,
        }

    @property
    def experts_shape(self) -> ExpertsShape:
        return ExpertsShape(
            self.experts,
            self.chosen,
            self.width,
            self.feed_forward,
            Clamped(self.limit),
            biases=True,
        )

    def _attention(self, window: int | None) -> AttentionShape:
        size = self.head_size
        return AttentionShape(self.heads, self.key_value_heads, size, size, window, sinks=True)

    def _layer(self, window: int | None) -> Layer:
        block, attention = functools.partial(Block, self), self._attention(window)
        return Layer(block, attention, tensors.LAYER, self.sizes, self.experts_shape)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Layers with a window and layers without one take turns."""
        local, whole = self._layer(self.window), self._layer(None)
        repeats, rest = divmod(self.layers, 2)
        found = [Segment(repeats, (local, whole))] if repeats else []
        return (*found, Segment(1, (local,))) if rest else tuple(found)

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        return (
            parameter(tensors.EMBED, self.sizes),
            *layer_parameters(self.segments),
            parameter(tensors.NORM, self.sizes),
            parameter(tensors.HEAD, self.sizes),
        )

    def last_norm(self) -> RMSNorm:
        return RMSNorm(self.width, self.norm_epsilon)

    @property
    def rope_factor(self) -> float:
        """Factor of rotated queries and keys."""
        return 1.0 if self.yarn is None else self.yarn.attention_factor

    def angles(self, positions: Int[Array, "B T"]) -> Float[Array, "B T half"]:
        """Radians by which each pair of features is rotated."""
        frequencies = yarn_frequencies(self.head_size, self.rope_theta, self.yarn)
        return rope_angles(positions, frequencies)


class Router(nnx.Module):
    """Scores all experts for every token."""

    def __init__(self, experts: int, width: int, key: PRNGKeyArray) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(key, (experts, width)))
        self.bias = nnx.Param(jnp.zeros(experts))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        return router_logits(x, self.weight[...], self.bias[...])


class Block(nnx.Module):
    """One layer: attention, then experts.

    Each has a norm in front of it and adds its output to the hidden states.
    """

    def __init__(self, config: GptOssConfig, key: PRNGKeyArray) -> None:
        *keys, router_key, experts_key = jax.random.split(key, len(LINEAR_NAMES) + 2)
        width, queries = config.width, config.heads * config.head_size
        key_values = config.key_value_heads * config.head_size
        self.config = config
        self.attention_norm = RMSNorm(width, config.norm_epsilon)
        self.q_proj = Linear(width, queries, keys[0], has_bias=True)
        self.k_proj = Linear(width, key_values, keys[1], has_bias=True)
        self.v_proj = Linear(width, key_values, keys[2], has_bias=True)
        self.o_proj = Linear(queries, width, keys[3], has_bias=True)
        self.sinks = nnx.Param(jnp.zeros(config.heads))
        self.mlp_norm = RMSNorm(width, config.norm_epsilon)
        self.router = Router(config.experts, width, router_key)
        self.experts = Experts(config.experts_shape, experts_key)

    def queries_keys_values(
        self, x: Float[Array, "B T D"], angle: Float[Array, "B T half"], keys: DropoutKeys
    ) -> tuple[Float[Array, "B T H size"], Float[Array, "B T K size"], Float[Array, "B T K size"]]:
        """Queries, keys and values of normed input; queries and keys are rotated."""
        heads = (*x.shape[:2], -1, self.config.head_size)
        q, k, v = (
            mark_product(linear(x, key)).reshape(heads)
            for linear, key in zip((self.q_proj, self.k_proj, self.v_proj), keys, strict=False)
        )
        factor = self.config.rope_factor
        return rotate(q, angle, factor), rotate(k, angle, factor), v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angle: Float[Array, "B T half"],
        attend: Callable[..., tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
        experts: Callable[..., Array] = routed_sum,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies the layer. `architecture.Layer` documents the arguments and the result."""
        keys = dropout_keys(key, len(LINEAR_NAMES))
        with jax.named_scope("attention"):
            q, k, v = self.queries_keys_values(self.attention_norm(x), angle, keys)
            attended, kept = attend(q, k, v, sinks=self.sinks[...])
            attended = attended.reshape(*x.shape[:2], -1)
            x = mark_product(x + self.o_proj(attended, keys[3]))
        with jax.named_scope("experts"):
            normed = self.mlp_norm(x)
            route = softmax_of_best(self.router(normed), self.config.chosen)
            return x + self.experts(normed, route, experts), kept
