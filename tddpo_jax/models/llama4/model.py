"""Llama 4 as flax.nnx modules: the text part.

In three of four layers, positions are cut into chunks, and a token sees only its own chunk. There,
queries and keys are rotated. The fourth layer sees everything and rotates nothing. Some layers have
experts, and a feed-forward beside them that all tokens share.

This module holds shapes and mathematics. It knows no mesh, no files and no loss.

Letters: B rows, T stream positions, D width, H heads, K key/value heads, E experts.

Random models of 2 million parameters were trained on real pairs for 16 steps, in full, with LoRA
and with QLoRA. The log-probs that transformers and peft compute of their exports agree with ours to
2e-6 nats per token (float32, CPU).

References:
    Meta, "The Llama 4 herd" (2025).
    huggingface/transformers, `models/llama4/modeling_llama4.py`.
    Nakanishi, "Scalable-Softmax Is Superior for Attention" (2025): the temperature.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tddpo_jax.models.architecture import Layer, Segment, layer_parameters
from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.experts.experts import (
    Experts,
    ExpertsShape,
    routed_sum,
    router_logits,
    silu_gated,
)
from tddpo_jax.models.experts.routing import sigmoid_of_best
from tddpo_jax.models.feed_forward import FeedForward
from tddpo_jax.models.linear import DropoutKeys, Linear, dropout_keys, mark_product
from tddpo_jax.models.llama4 import tensors
from tddpo_jax.models.llama4.tensors import LINEAR_NAMES
from tddpo_jax.models.norm import RMSNorm, normalised
from tddpo_jax.models.rope import RopeScaling, rope_angles, rope_frequencies, rotate
from tddpo_jax.models.tensor_table import Parameter, parameter


class Kind(NamedTuple):
    """What sets the layers apart from each other."""

    is_local: bool  # whether it rotates queries and keys, and sees only chunks
    has_experts: bool


class Temperature(NamedTuple):
    """The growth of queries with their position, in layers that see everything."""

    scale: float
    period: float  # queries grow at every multiple of so many positions

    def factor(self, positions: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """`1 + scale log(1 + floor((position + 1) / period))`."""
        periods = jnp.floor((positions.astype(jnp.float32) + 1) / self.period)
        return 1 + self.scale * jnp.log1p(periods)


class OfPositions(NamedTuple):
    """What the layers read of the positions."""

    angle: Float[Array, "B T half"]  # radians by which each pair of features is rotated
    factor: Float[Array, "B T"] | None  # of queries in layers that see everything; None: 1


@dataclasses.dataclass(frozen=True)
class Llama4Config:
    """The shape of a Llama 4. It implements `DecoderConfig`.

    No field has a default, because a wrong default would go unnoticed.
    """

    vocabulary: int
    width: int
    kinds: tuple[Kind, ...]  # of all layers
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int  # hidden features of a layer without experts
    expert_feed_forward: int  # hidden features of an expert, and of what stands beside the experts
    experts: int
    chosen: int  # number of experts that a token uses
    context: int
    chunk: int | None  # positions of a chunk in local layers; None: one chunk
    head_norms: bool  # whether queries and keys are normalised in local layers
    temperature: Temperature | None
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_epsilon: float
    # The token id that stands for a part of an image, if the checkpoint also holds a vision part.
    image_token: int | None

    tied = False
    embedding_scale = 1.0
    derived = ()
    dropped = ()

    @property
    def layers(self) -> int:
        return len(self.kinds)

    @property
    def has_vision(self) -> bool:
        return self.image_token is not None

    @property
    def not_text(self) -> tuple[int, ...]:
        return () if self.image_token is None else (self.image_token,)

    @property
    def carried(self) -> tuple[str, ...]:
        return tensors.CARRIED if self.has_vision else ()

    @property
    def prefix(self) -> str:
        """The beginning of the names of its tensors in a checkpoint."""
        return tensors.WITH_VISION if self.has_vision else ""

    @property
    def experts_shape(self) -> ExpertsShape:
        sizes = self.experts, self.chosen, self.width, self.expert_feed_forward
        return ExpertsShape(*sizes, silu_gated, weighs_input=True)

    def _sizes(self, kind: Kind) -> dict[str, int]:
        """The sizes of the axes of a layer's tensors, by the axes' names."""
        experts = self.experts_shape.axes if kind.has_experts else {}  # has `feed_forward` too
        return {
            "vocabulary": self.vocabulary,
            "width": self.width,
            "feed_forward": self.feed_forward,
            **self._attention(kind).axes,
            **experts,
        }

    def _attention(self, kind: Kind) -> AttentionShape:
        size, chunk = self.head_size, self.chunk if kind.is_local else None
        return AttentionShape(self.heads, self.key_value_heads, size, size, chunk=chunk)

    def _layer(self, kind: Kind) -> Layer:
        return Layer(
            functools.partial(Block, self, kind),
            self._attention(kind),
            tensors.layer(self.prefix, has_experts=kind.has_experts),
            self._sizes(kind),
            self.experts_shape if kind.has_experts else None,
        )

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The shortest period of kinds, as often as it fits, and what is left of it."""
        kinds = self.kinds
        size = next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[: len(kinds) - n])
        period = tuple(map(self._layer, kinds[:size]))
        repeats, rest = divmod(len(kinds), size)
        whole = Segment(repeats, period)
        return (whole, Segment(1, period[:rest])) if rest else (whole,)

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        sizes = self._sizes(self.kinds[0])
        return (
            parameter(tensors.embed(self.prefix), sizes),
            *layer_parameters(self.segments),
            parameter(tensors.last_norm(self.prefix), sizes),
            parameter(tensors.head(self.prefix), sizes),
        )

    def last_norm(self) -> RMSNorm:
        return RMSNorm(self.width, self.norm_epsilon)

    def angles(self, positions: Int[Array, "B T"]) -> OfPositions:
        frequencies = rope_frequencies(self.head_size, self.rope_theta, self.rope_scaling)
        angle = rope_angles(positions, frequencies)
        temperature = self.temperature
        return OfPositions(angle, None if temperature is None else temperature.factor(positions))


class Router(nnx.Module):
    """Scores all experts for every token."""

    def __init__(self, experts: int, width: int, key: PRNGKeyArray) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(key, (experts, width)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        return router_logits(x, self.weight[...])


class Block(nnx.Module):
    """One layer: attention, then a feed-forward, with experts beside it in some layers.

    Both have a norm in front of them and add their output to the hidden states.
    """

    def __init__(self, config: Llama4Config, kind: Kind, key: PRNGKeyArray) -> None:
        *keys, mlp_key, router_key, experts_key = jax.random.split(key, 7)
        width, queries = config.width, config.heads * config.head_size
        key_values = config.key_value_heads * config.head_size
        inner = config.expert_feed_forward if kind.has_experts else config.feed_forward
        self.config = config
        self.is_local = kind.is_local
        self.has_experts = kind.has_experts
        self.attention_norm = RMSNorm(width, config.norm_epsilon)
        self.q_proj = Linear(width, queries, keys[0])
        self.k_proj = Linear(width, key_values, keys[1])
        self.v_proj = Linear(width, key_values, keys[2])
        self.o_proj = Linear(queries, width, keys[3])
        self.mlp_norm = RMSNorm(width, config.norm_epsilon)
        self.feed_forward = FeedForward(width, inner, mlp_key)
        if kind.has_experts:
            self.router = Router(config.experts, width, router_key)
            self.experts = Experts(config.experts_shape, experts_key)

    def queries_keys_values(
        self, x: Float[Array, "B T D"], of_positions: OfPositions, keys: DropoutKeys
    ) -> tuple[Float[Array, "B T H size"], Float[Array, "B T K size"], Float[Array, "B T K size"]]:
        """Queries, keys and values of normed input, with their positions in them."""
        heads = (*x.shape[:2], -1, self.config.head_size)
        q, k, v = (
            mark_product(linear(x, key)).reshape(heads)
            for linear, key in zip((self.q_proj, self.k_proj, self.v_proj), keys, strict=False)
        )
        if not self.is_local:
            return _scaled(q, of_positions.factor), k, v
        q, k = (rotate(each, of_positions.angle, pairs="adjacent") for each in (q, k))
        if self.config.head_norms:
            q, k = (normalised(each, self.config.norm_epsilon) for each in (q, k))
        return q, k, v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        of_positions: OfPositions,
        attend: Callable[..., tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
        experts: Callable[..., Array] = routed_sum,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies the layer. `architecture.Layer` documents the arguments and the result."""
        keys = dropout_keys(key, len(LINEAR_NAMES))
        with jax.named_scope("attention"):
            q, k, v = self.queries_keys_values(self.attention_norm(x), of_positions, keys)
            attended, kept = attend(q, k, v)
            attended = attended.reshape(*x.shape[:2], -1)
            x = mark_product(x + self.o_proj(attended, keys[3]))
        normed = self.mlp_norm(x)
        with jax.named_scope("feed-forward"):
            y = self.feed_forward(normed, keys[4:])
        if self.has_experts:
            with jax.named_scope("experts"):
                route = sigmoid_of_best(self.router(normed), self.config.chosen)
                y = y + self.experts(normed, route, experts)
        return x + y, kept


def _scaled(
    q: Float[Array, "B T H size"], factor: Float[Array, "B T"] | None
) -> Float[Array, "B T H size"]:
    """Queries times a factor of every position, which is applied in float32."""
    if factor is None:
        return q
    return (q.astype(jnp.float32) * factor[:, :, None, None]).astype(q.dtype)
