"""Rotary positions."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of the slow rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


def rope_frequencies(
    head_size: int, theta: float, scaling: RopeScaling | None
) -> Float[Array, " half"]:
    """Radians per position of each rotated pair of features, float32 `[head_size / 2]`."""
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
    """Rotates feature i against feature i + size/2 (the layout of Hugging Face's checkpoints)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
