"""Gemma 3 as flax.nnx modules: the text part.

This module holds shapes and mathematics. It knows no mesh, no files and no loss.

Letters: B rows, T stream positions, D width, H heads, K key/value heads.

References:
    Gemma Team, "Gemma 3 Technical Report" (2025).
    huggingface/transformers, `models/gemma3/modeling_gemma3.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tddpo_jax.models.architecture import Layer, Segment, layer_parameters
from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.gemma3 import tensors
from tddpo_jax.models.gemma3.tensors import LINEAR_NAMES
from tddpo_jax.models.linear import DropoutKeys, Linear, dropout_keys, gated, mark_product
from tddpo_jax.models.norm import ZeroCentredRMSNorm
from tddpo_jax.models.rope import rope_angles, rope_frequencies, rotate
from tddpo_jax.models.tensor_table import Parameter, parameter


class Angles(NamedTuple):
    """Radians by which each pair of features is rotated."""

    local: Float[Array, "B T half"]  # in layers with a window
    whole: Float[Array, "B T half"]  # in layers without one


@dataclasses.dataclass(frozen=True)
class Gemma3Config:
    """The shape of a Gemma 3. It implements `DecoderConfig`.

    No field has a default, because a wrong default would go unnoticed.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int
    context: int
    window: int  # newest positions that a token sees in a local layer, including its own
    period: int  # every layer of this number sees all positions, the others only the window
    local_theta: float  # base of the rotary frequencies in local layers
    whole_theta: float  # base of the rotary frequencies in the other layers
    rope_factor: float  # the frequencies of the other layers are divided by it
    score_scalar: float  # scores are divided by its square root
    norm_epsilon: float
    # The token id that stands for a part of an image, if the checkpoint also holds a vision part.
    image_token: int | None

    tied = True
    derived = ()
    dropped = ()

    @property
    def has_vision(self) -> bool:
        return self.image_token is not None

    @property
    def not_text(self) -> tuple[int, ...]:
        return () if self.image_token is None else (self.image_token,)

    @property
    def prefix(self) -> str:
        """The beginning of the names of its tensors in a checkpoint."""
        return tensors.WITH_VISION if self.has_vision else ""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the axes of its tensors, by the axes' names."""
        return {
            "vocabulary": self.vocabulary,
            "width": self.width,
            "feed_forward": self.feed_forward,
            **self._attention(None).axes,
        }

    def _attention(self, window: int | None) -> AttentionShape:
        size, scale = self.head_size, self.score_scalar**-0.5
        return AttentionShape(self.heads, self.key_value_heads, size, size, window, scale)

    def _layer(self, window: int | None) -> Layer:
        block = functools.partial(Block, self, window is not None)
        return Layer(block, self._attention(window), tensors.layer(self.prefix), self.sizes)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Whole periods of local layers and one that sees everything, then local layers alone."""
        local, whole = self._layer(self.window), self._layer(None)
        repeats, rest = divmod(self.layers, self.period)
        found = []
        if repeats:
            found.append(Segment(repeats, (*[local] * (self.period - 1), whole)))
        if rest:
            found.append(Segment(rest, (local,)))
        return tuple(found)

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        return (
            parameter(tensors.embed(self.prefix), self.sizes),
            *layer_parameters(self.segments),
            parameter(tensors.last_norm(self.prefix), self.sizes),
        )

    @property
    def carried(self) -> tuple[str, ...]:
        return tensors.CARRIED if self.has_vision else ()

    @property
    def embedding_scale(self) -> float:
        return self.width**0.5

    def last_norm(self) -> ZeroCentredRMSNorm:
        return ZeroCentredRMSNorm(self.width, self.norm_epsilon)

    def angles(self, positions: Int[Array, "B T"]) -> Angles:
        local, whole = (
            rope_frequencies(self.head_size, theta, None)
            for theta in (self.local_theta, self.whole_theta)
        )
        return Angles(
            rope_angles(positions, local), rope_angles(positions, whole / self.rope_factor)
        )


class Block(nnx.Module):
    """One layer: attention, then a gated feed-forward.

    Each has a norm in front of it and another behind it, and adds its output to the hidden states.
    """

    def __init__(self, config: Gemma3Config, is_local: bool, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, len(LINEAR_NAMES))
        width, queries = config.width, config.heads * config.head_size
        key_values, inner = config.key_value_heads * config.head_size, config.feed_forward

        def norm(size: int) -> ZeroCentredRMSNorm:
            return ZeroCentredRMSNorm(size, config.norm_epsilon)

        self.config = config
        self.is_local = is_local
        self.attention_norm = norm(width)
        self.q_proj = Linear(width, queries, keys[0])
        self.k_proj = Linear(width, key_values, keys[1])
        self.v_proj = Linear(width, key_values, keys[2])
        self.o_proj = Linear(queries, width, keys[3])
        self.q_norm = norm(config.head_size)
        self.k_norm = norm(config.head_size)
        self.attended_norm = norm(width)
        self.mlp_norm = norm(width)
        self.gate_proj = Linear(width, inner, keys[4])
        self.up_proj = Linear(width, inner, keys[5])
        self.down_proj = Linear(inner, width, keys[6])
        self.output_norm = norm(width)

    def queries_keys_values(
        self, x: Float[Array, "B T D"], angle: Float[Array, "B T half"], keys: DropoutKeys
    ) -> tuple[Float[Array, "B T H size"], Float[Array, "B T K size"], Float[Array, "B T K size"]]:
        """Queries, keys and values of normed input; queries and keys are normed and rotated."""
        heads = (*x.shape[:2], -1, self.config.head_size)
        q, k, v = (
            mark_product(linear(x, key)).reshape(heads)
            for linear, key in zip((self.q_proj, self.k_proj, self.v_proj), keys, strict=False)
        )
        return rotate(self.q_norm(q), angle), rotate(self.k_norm(k), angle), v

    def feed_forward(self, x: Float[Array, "B T D"], keys: DropoutKeys) -> Float[Array, "B T D"]:
        activation = functools.partial(jax.nn.gelu, approximate=True)
        inner = gated(activation, self.gate_proj(x, keys[4]), self.up_proj(x, keys[5]))
        return self.down_proj(inner, keys[6])

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Angles,
        attend: Callable[..., tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies the layer. `architecture.Layer` documents the arguments and the result."""
        keys = dropout_keys(key, len(LINEAR_NAMES))
        angle = angles.local if self.is_local else angles.whole
        with jax.named_scope("attention"):
            q, k, v = self.queries_keys_values(self.attention_norm(x), angle, keys)
            attended, kept = attend(q, k, v)
            attended = self.o_proj(attended.reshape(*x.shape[:2], -1), keys[3])
            x = mark_product(x + self.attended_norm(attended))
        with jax.named_scope("feed-forward"):
            return x + self.output_norm(self.feed_forward(self.mlp_norm(x), keys)), kept
