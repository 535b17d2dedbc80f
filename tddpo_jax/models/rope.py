"""Rotary positions.

References:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The features that are rotated together: i and i + size/2, or 2 i and 2 i + 1.
Pairs = Literal["halves", "adjacent"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of the slow rotary frequencies (`rope_type: llama3`).

    Frequencies are compared by the turns that they make in the original context.
    """

    factor: float  # the slow frequencies are divided by it
    low_freq_factor: float  # frequencies with fewer turns than this are fully stretched
    high_freq_factor: float  # frequencies with more turns than this stay as they are
    original_context: int  # context before the stretching, in tokens


def rope_frequencies(
    head_size: int, theta: float, scaling: RopeScaling | None
) -> Float[Array, " half"]:
    """Radians per position of each rotated pair of features.

    Pair i turns by theta^(-2 i / head_size) radians per position (Su et al., section 3.4.3). The
    optional scaling is that of Llama 3. Between its two limits it interpolates linearly in the
    number of turns.

    Args:
        head_size: features of a head, an even number.
        theta: base of the frequencies.
        scaling: Llama-3's stretching; None: no stretching.

    Returns:
        The frequencies, float32 `[head_size / 2]`.

    References:
        meta-llama/llama-models, `models/llama3/model.py`, `apply_scaling`.
        huggingface/transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    """
    exponent = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency
    turns = scaling.original_context * frequency / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low < high:
        smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    else:  # as in Llama 4: there is nothing between the limits
        smooth = jnp.where(turns >= high, 1.0, 0.0)
    return frequency * (smooth + (1 - smooth) / scaling.factor)


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN's stretching of the slow rotary frequencies (`rope_type: yarn`)."""

    factor: float  # the slow frequencies are divided by it
    original_context: int  # context before the stretching, in tokens
    most_turns: float  # frequencies with more turns in that context stay as they are
    fewest_turns: float  # frequencies with fewer turns are fully stretched
    whole_bounds: bool  # whether the bounds between these are rounded to whole pairs

    @property
    def attention_factor(self) -> float:
        """Factor of rotated queries and keys (Peng et al., equation 22).

        It is 1 without stretching, as in transformers.
        """
        return magnitude(self.factor)


def magnitude(factor: float, weight: float = 1.0) -> float:
    """How much more YaRN lets queries and keys weigh if it stretches frequencies by `factor`."""
    return 0.1 * weight * math.log(max(factor, 1.0)) + 1.0


def yarn_frequencies(head_size: int, theta: float, yarn: Yarn | None) -> Float[Array, " half"]:
    """Radians per position of each rotated pair of features, stretched by YaRN.

    Between two bounds, the frequency goes linearly from its own value to the stretched one.

    Args:
        head_size: features of a head, an even number.
        theta: base of the frequencies.
        yarn: the stretching; None: no stretching.

    Returns:
        The frequencies, float32 `[head_size / 2]`.

    References:
        Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023).
        huggingface/transformers, `modeling_rope_utils.py`, `_compute_yarn_parameters`.
    """
    frequency = rope_frequencies(head_size, theta, None)
    if yarn is None:
        return frequency

    def pair_with(turns: float) -> float:
        """The pair, as a real number, that makes so many turns in the original context."""
        ratio = yarn.original_context / (turns * 2 * math.pi)
        return head_size * math.log(ratio) / (2 * math.log(theta))

    low, high = pair_with(yarn.most_turns), pair_with(yarn.fewest_turns)
    if yarn.whole_bounds:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    width = high - low if high != low else 0.001  # as in transformers
    stretched = jnp.clip((jnp.arange(head_size // 2) - low) / width, 0.0, 1.0)
    return frequency * (1 - stretched) + frequency / yarn.factor * stretched


def rope_angles(
    positions: Int[Array, "B T"], frequencies: Float[Array, " half"]
) -> Float[Array, "B T half"]:
    """Radians by which each pair of features is rotated.

    Args:
        positions: positions of tokens in their branches.
        frequencies: radians per position of each pair.
    """
    return positions[:, :, None].astype(jnp.float32) * frequencies[None, None]


def rotate(
    x: Float[Array, "B T H size"],
    angle: Float[Array, "B T half"],
    factor: float = 1.0,
    pairs: Pairs = "halves",
) -> Float[Array, "B T H size"]:
    """Rotates pairs of features.

    Args:
        x: queries or keys.
        angle: the rotations in radians.
        factor: of the result.
        pairs: which features make a pair. The weights of a checkpoint fit one of the two.
    """
    x32 = x.astype(jnp.float32)
    adjacent = pairs == "adjacent"
    first, second = (x32[..., 0::2], x32[..., 1::2]) if adjacent else jnp.split(x32, 2, axis=-1)
    cos, sin = (factor * turn(angle)[:, :, None] for turn in (jnp.cos, jnp.sin))
    rotated = first * cos - second * sin, second * cos + first * sin
    if adjacent:
        return jnp.stack(rotated, axis=-1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
