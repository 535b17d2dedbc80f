"""Rotary positions.

References:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float


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
    smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (smooth + (1 - smooth) / scaling.factor)


def rotate(
    x: Float[Array, "B T H size"], angle: Float[Array, "B T half"]
) -> Float[Array, "B T H size"]:
    """Rotates feature i together with feature i + size/2, as Hugging Face's checkpoints expect."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
