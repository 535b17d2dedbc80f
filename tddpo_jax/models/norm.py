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

    def __call__(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest D"]:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return normed * self.weight[...][None, None].astype(x.dtype)
