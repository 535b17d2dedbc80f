"""Root-mean-square normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """Divides by the root mean square of the last axis and multiplies by a learned weight.

    The statistics are float32, and the result has the dtype of the input.

    Args:
        width: size of the last axis.
        epsilon: added to the mean square before the root; it comes from the checkpoint's config.

    References:
        Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """

    def __init__(self, width: int, epsilon: float) -> None:
        self.weight = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        return normalised(x, self.epsilon) * _like(x, self.weight[...].astype(x.dtype))


class ZeroCentredRMSNorm(nnx.Module):
    """An `RMSNorm` whose factor is one plus its weight, so that a weight of zeros changes nothing.

    Unlike in `RMSNorm`, the factor is applied in float32, before the result gets the input's dtype.

    Args:
        width: size of the last axis.
        epsilon: added to the mean square before the root; it comes from the checkpoint's config.

    References:
        Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology" (2024).
    """

    def __init__(self, width: int, epsilon: float) -> None:
        self.weight = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        factor = 1.0 + _like(x, self.weight[...].astype(jnp.float32))
        return (_normed(x, self.epsilon) * factor).astype(x.dtype)


def normalised(x: Float[Array, "*any D"], epsilon: float) -> Float[Array, "*any D"]:
    """The input over its root mean square, without a weight, in the dtype of the input.

    Args:
        x: any array; its last axis is normalised.
        epsilon: added to the mean square before the root.
    """
    return _normed(x, epsilon).astype(x.dtype)


def _like(x: Float[Array, "*any D"], weight: Float[Array, " D"]) -> Float[Array, "*ones D"]:
    """The weight with as many axes as the input."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def _normed(x: Float[Array, "*any D"], epsilon: float) -> Float[Array, "*any D"]:
    """The input over its root mean square, in float32."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return x32 * jax.lax.rsqrt(mean_square + epsilon)
