"""DeepSeek V3, V3.1 and V3.2 as flax.nnx modules.

This module holds shapes and mathematics. It knows no mesh, no files and no loss.

Letters: B rows, T stream positions, D width.

References:
    DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024).
    huggingface/transformers, `models/deepseek_v3/modeling_deepseek_v3.py`.
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
from tddpo_jax.models.buffer import Buffer
from tddpo_jax.models.deepseek import tensors
from tddpo_jax.models.deepseek.indexer import IndexerShape
from tddpo_jax.models.deepseek.latent_attention import LatentAttention, LatentShape
from tddpo_jax.models.experts.experts import (
    Experts,
    ExpertsShape,
    routed_sum,
    router_logits,
    silu_gated,
)
from tddpo_jax.models.experts.routing import Route, sigmoid_in_groups
from tddpo_jax.models.feed_forward import FeedForward
from tddpo_jax.models.linear import dropout_keys, mark_product
from tddpo_jax.models.norm import RMSNorm
from tddpo_jax.models.rope import Yarn, rope_angles, yarn_frequencies
from tddpo_jax.models.tensor_table import Parameter, linear_names, parameter

# Numbers of linear layers of a layer, and of its attention.
LINEARS, ATTENTION_LINEARS = len(tensors.LINEAR_NAMES), len(linear_names(tensors.ATTENTION))


@dataclasses.dataclass(frozen=True)
class DeepseekConfig:
    """The shape of a DeepSeek. It implements `DecoderConfig`.

    No field has a default, because a wrong default would go unnoticed.
    """

    vocabulary: int
    layers: int
    dense_layers: int  # number of layers without experts; they come first
    attention: LatentShape
    indexer: IndexerShape | None  # what chooses keys (V3.2); None: a token sees all
    feed_forward: int  # hidden features of a layer without experts
    expert_feed_forward: int  # hidden features of each expert
    shared_experts: int  # number of experts that every token uses; they are one feed-forward
    experts: int
    chosen: int  # number of experts that a token chooses
    groups: int  # number of groups of experts
    kept_groups: int  # number of groups from which a token chooses
    route_factor: float  # sum of the weights of a token's experts
    context: int
    rope_theta: float
    yarn: Yarn | None
    rope_factor: float  # factor of rotated features
    score_factor: float  # factor of the scores, besides 1/sqrt(size)
    norm_epsilon: float
    further_layers: int  # number of layers of a checkpoint that predict further tokens

    tied = False
    embedding_scale = 1.0
    carried = ()
    not_text = ()
    derived = ()

    @property
    def width(self) -> int:
        return self.attention.width

    @property
    def dropped(self) -> tuple[str, ...]:
        """The layers that predict further tokens follow the others."""
        numbers = range(self.layers, self.layers + self.further_layers)
        return tuple(f"model.layers.{number}." for number in numbers)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the axes of the tensors that every layer has, by the axes' names."""
        axes = {**self.attention.axes, **({} if self.indexer is None else self.indexer.axes)}
        return {"vocabulary": self.vocabulary, "width": self.width, **axes}

    @property
    def attention_shape(self) -> AttentionShape:
        shape, indexer = self.attention, self.indexer
        return AttentionShape(
            shape.heads,
            shape.heads,
            shape.size,
            shape.value_size,
            scale=self.score_factor * shape.size**-0.5,
            cached=shape.axes["compressed"] + (0 if indexer is None else indexer.size),
            most_keys=None if indexer is None else indexer.most,
        )

    @property
    def experts_shape(self) -> ExpertsShape:
        return ExpertsShape(
            self.experts, self.chosen, self.width, self.expert_feed_forward, silu_gated
        )

    @property
    def shared_feed_forward(self) -> int:
        return self.shared_experts * self.expert_feed_forward

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Layers without experts, then layers with experts."""
        attention = (*tensors.ATTENTION, *(() if self.indexer is None else tensors.INDEXER))
        dense = Layer(
            functools.partial(Block, self, False),
            self.attention_shape,
            (*attention, *tensors.DENSE),
            {**self.sizes, "feed_forward": self.feed_forward},
        )
        mixed = Layer(
            functools.partial(Block, self, True),
            self.attention_shape,
            (*attention, *tensors.MIXED),
            {
                **self.sizes,
                **self.experts_shape.axes,
                "shared_feed_forward": self.shared_feed_forward,
            },
            self.experts_shape,
        )
        counts = self.dense_layers, self.layers - self.dense_layers
        both = zip(counts, (dense, mixed), strict=True)
        return tuple(Segment(count, (layer,)) for count, layer in both if count)

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

    def angles(self, positions: Int[Array, "B T"]) -> Float[Array, "B T half"]:
        """Radians by which each pair of features is rotated."""
        size = self.attention.rotated_size
        return rope_angles(positions, yarn_frequencies(size, self.rope_theta, self.yarn))


class Router(nnx.Module):
    """Chooses the experts of every token."""

    def __init__(self, config: DeepseekConfig, key: PRNGKeyArray) -> None:
        shape = (config.experts, config.width)
        self.config = config
        self.weight = nnx.Param(0.02 * jax.random.normal(key, shape))
        self.correction = Buffer(jnp.zeros(config.experts))

    def __call__(self, x: Float[Array, "B T D"]) -> Route:
        config = self.config
        return sigmoid_in_groups(
            router_logits(x, self.weight[...]),
            self.correction[...],
            config.chosen,
            groups=config.groups,
            kept_groups=config.kept_groups,
            factor=config.route_factor,
        )


class Block(nnx.Module):
    """One layer: latent attention, then a feed-forward, with experts beside it in some layers.

    Each half has a norm in front of it and adds its output to the hidden states.
    """

    def __init__(self, config: DeepseekConfig, has_experts: bool, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, 4)
        width = config.width
        inner = config.shared_feed_forward if has_experts else config.feed_forward
        self.has_experts = has_experts
        self.attention_norm = RMSNorm(width, config.norm_epsilon)
        self.attention = LatentAttention(
            config.attention, config.rope_factor, keys[0], config.indexer
        )
        self.mlp_norm = RMSNorm(width, config.norm_epsilon)
        self.feed_forward = FeedForward(width, inner, keys[1])
        if has_experts:
            self.router = Router(config, keys[2])
            self.experts = Experts(config.experts_shape, keys[3])

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angle: Float[Array, "B T half"],
        attend: Callable[..., tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
        experts: Callable[..., Array] = routed_sum,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies the layer. `architecture.Layer` documents the arguments and the result."""
        keys = dropout_keys(key, LINEARS)
        with jax.named_scope("attention"):
            normed = self.attention_norm(x)
            attended, kept = self.attention(normed, angle, attend, keys[:ATTENTION_LINEARS])
            x = mark_product(x + attended)
        normed = self.mlp_norm(x)
        with jax.named_scope("feed-forward"):
            y = self.feed_forward(normed, keys[ATTENTION_LINEARS:])
        if self.has_experts:
            with jax.named_scope("experts"):
                y = y + self.experts(normed, self.router(normed), experts)
        return x + y, kept
